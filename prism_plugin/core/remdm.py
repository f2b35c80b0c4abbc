"""ReMDM's remasking: each token goes by chance, at a rate that keeps the share of tokens as it should be (arXiv 2503.00307)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prism_plugin.core.remasking import REMASKING
from prism_plugin.core.selection import at_most
from prism_plugin.core.validation import require_number
from prism_plugin.core.view import StepView
from prism_plugin.types import PerRow, TokenMask


def most_taken_back(view: StepView, budget: PerRow) -> Tensor:
    """The paper's sigma_max, min(1, (1 - alpha_s) / alpha_t), of each row: what may be taken back, as a share of what stands.

    A schedule without a cap of its own grants what is left to reveal after the step, but not more than stands there.
    """
    return budget / view.revealed.sum(-1).clamp(min=1)


def by_chance(view: StepView, budget: PerRow, rate: Tensor, rule: object) -> TokenMask:
    """Draw each revealed position at a rate of its row, [batch]; of more than the grant, any."""
    noise = view.require("noise", rule)
    return at_most(view.revealed & (noise < rate.unsqueeze(-1)), -noise, budget)


@REMASKING.register("remdm_cap")
@dataclass(frozen=True)
class RemdmCapRemasking:
    """Take back each position with probability min(eta, sigma_max): ReMDM-cap, section 4.1.

    Args:
        eta: In (0, 1]. The paper has 0.008 for 1,024 steps, and 0.04 for few.
    """

    eta: float = 0.008
    needs: ClassVar[frozenset[str]] = frozenset({"noise"})
    by_chance: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "eta", "a probability in (0, 1]", low=0, high=1, open_low=True)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return by_chance(view, budget, most_taken_back(view, budget).clamp(max=self.eta), self)


@REMASKING.register("remdm_rescale")
@dataclass(frozen=True)
class RemdmRescaleRemasking:
    """Take back each position with probability eta * sigma_max: ReMDM-rescale, section 4.1.

    Args:
        eta: In (0, 1]. The paper has 0.015 for 1,024 steps.
    """

    eta: float = 0.015
    needs: ClassVar[frozenset[str]] = frozenset({"noise"})
    by_chance: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "eta", "a probability in (0, 1]", low=0, high=1, open_low=True)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return by_chance(view, budget, most_taken_back(view, budget) * self.eta, self)
