"""Which masked positions to reveal. A rule that ranks reveals exactly the grant, or all that is masked if that is less."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from prism_plugin.core.selection import select_above, select_top
from prism_plugin.core.validation import require_number
from prism_plugin.core.view import StepView
from prism_plugin.registry import Registry
from prism_plugin.types import PerRow, TokenMask


class UnmaskingRule(Protocol):
    """Picks the positions to reveal: a subset of `view.masked`, at least the smaller of grant and masked positions."""

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask: ...


UNMASKING: Registry[UnmaskingRule] = Registry("unmasking rule")


@UNMASKING.register("random")
@dataclass(frozen=True)
class RandomUnmasking:
    """Reveal positions in random order, as ancestral sampling of a masked diffusion model does."""

    needs: ClassVar[frozenset[str]] = frozenset({"noise"})

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return select_top(view.require("noise", self), view.masked, budget)


@UNMASKING.register("confidence")
@dataclass(frozen=True)
class ConfidenceUnmasking:
    """Reveal the positions whose drawn token the model is most sure of (LLaDA's "low_confidence", arXiv 2502.09992)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return select_top(view.confidence, view.masked, budget)


@UNMASKING.register("margin")
@dataclass(frozen=True)
class MarginUnmasking:
    """Reveal where the most probable token is furthest ahead of the second (top-k margin, arXiv 2502.06768)."""

    needs: ClassVar[frozenset[str]] = frozenset({"margin"})

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return select_top(view.require("margin", self), view.masked, budget)


@UNMASKING.register("entropy")
@dataclass(frozen=True)
class EntropyUnmasking:
    """Reveal where the model's distribution has the lowest entropy (Dream's "entropy", arXiv 2508.15487)."""

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return select_top(-view.require("entropy", self), view.masked, budget)


@UNMASKING.register("threshold")
@dataclass(frozen=True)
class ThresholdUnmasking:
    """Reveal every position whose confidence reaches the threshold, and at least the grant (Fast-dLLM, arXiv 2505.22618).

    Args:
        threshold: Probability in [0, 1]; Fast-dLLM uses 0.9.
    """

    threshold: float
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        sure = select_above(view.confidence, view.masked, self.threshold)
        return sure | select_top(view.confidence, view.masked, budget)
