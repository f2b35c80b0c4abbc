"""Which revealed tokens to overwrite with another. A rule reads what the model would write there now."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from prism_plugin.core.validation import require_number
from prism_plugin.core.view import StepView
from prism_plugin.registry import Registry
from prism_plugin.types import TokenMask


class EditingRule(Protocol):
    """Picks the positions to overwrite: a subset of `view.revealed`; they get the feature `best_visible`."""

    def __call__(self, view: StepView) -> TokenMask: ...


EDITING: Registry[EditingRule] = Registry("editing rule")


@EDITING.register("threshold")
@dataclass(frozen=True)
class ThresholdEditing:
    """Overwrite a token by another that the model is sure of: token-to-token editing (LLaDA2.1's T2T, arXiv 2604.18738).

    Args:
        threshold: Probability in [0, 1] that the other token must exceed.
    """

    threshold: float
    needs: ClassVar[frozenset[str]] = frozenset({"best_visible", "best_visible_confidence"})
    by_chance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)

    def __call__(self, view: StepView) -> TokenMask:
        best, confidence = (view.require(name, self) for name in ("best_visible", "best_visible_confidence"))
        return view.revealed & (best != view.tokens) & (confidence > self.threshold)
