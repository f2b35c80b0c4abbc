"""Which masked positions to reveal. A rule that ranks reveals exactly the grant, or all that is masked if that is less."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

from prism_plugin.core.selection import select_above, select_top
from prism_plugin.core.validation import require_ints, require_number
from prism_plugin.core.view import StepView
from prism_plugin.registry import Registry
from prism_plugin.types import PerRow, TokenMask


@runtime_checkable
class UnmaskingRule(Protocol):
    """Picks the positions to reveal: a subset of `view.masked`, at least the smaller of grant and masked positions.

    It may declare `needs`, the features it reads, and `blind`: that it reads neither candidates nor confidence, and reveals
    exactly the grant. Then, where nothing is taken back, only the tokens that are written need be computed.
    """

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask: ...


UNMASKING: Registry[UnmaskingRule] = Registry("unmasking rule")


@UNMASKING.register("random")
@dataclass(frozen=True)
class RandomUnmasking:
    """Reveal positions in random order, as ancestral sampling of a masked diffusion model does."""

    needs: ClassVar[frozenset[str]] = frozenset({"noise"})
    blind: ClassVar[bool] = True

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


@UNMASKING.register("factor")
@dataclass(frozen=True)
class FactorUnmasking:
    """Reveal as many of the surest positions as can go together, and at least the grant (Fast-dLLM, arXiv 2505.22618).

    The n surest go together while (n + 1) (1 - c) <= factor, where c is the confidence of the last of them: then the product of
    their marginals is close to their joint distribution (theorem 1).

    Args:
        factor: > 0; the larger, the more go together. The authors' code has 1.
    """

    factor: float
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        require_number(self, "factor", "a number above 0", low=0, open_low=True)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        confidence = view.confidence.masked_fill(~view.masked, -torch.inf)
        surest = confidence.sort(dim=-1, descending=True).values
        numbers = torch.arange(1, surest.shape[-1] + 1, device=surest.device)
        fits = (surest >= 1 - self.factor / (numbers + 1)).long().cumprod(-1)
        return select_top(view.confidence, view.masked, budget.maximum(fits.sum(-1)))


@UNMASKING.register("klass")
@dataclass(frozen=True)
class KlassUnmasking:
    """Reveal what is sure and has settled, and at least the grant (KLASS, arXiv 2511.05664).

    A position has settled when its distribution moved by less than `divergence` at this look and at the one before.

    Args:
        threshold: Probability in [0, 1] that a candidate must exceed.
        divergence: KL divergence in nats from one look to the next, > 0.
    """

    threshold: float
    divergence: float
    needs: ClassVar[frozenset[str]] = frozenset({"kl_of_two"})

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)
        require_number(self, "divergence", "a number above 0", low=0, open_low=True)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        settled = view.require("kl_of_two", self) < self.divergence
        ready = view.masked & settled & (view.confidence > self.threshold)
        # what is ready comes first, so that no other goes before it where the grant asks for more
        return select_top(view.confidence + ready, view.masked, budget.maximum(ready.sum(-1)))


@UNMASKING.register("redraft")
@dataclass(frozen=True)
class RedraftUnmasking:
    """Draft by threshold; what was taken back and is drafted anew is filled surest first, each time at another pace.

    At temperature 0 the same order and pace would make the same mistakes again. A draft is counted by how often a position of
    the block has been taken back; for a rule and a schedule that take back whole drafts, `RedraftRemasking` and
    `RedraftSchedule`.

    Args:
        threshold: Of the first draft, as in `ThresholdUnmasking`.
        paces: Positions per look of the second draft, the third, and so on, each >= 1; the last is also that of all further
            ones, which differ from it by chance alone: at temperature 0 cap them by `max_remasks_per_position`. Where the
            steps left ask for more, the grant is kept.
    """

    threshold: float
    paces: tuple[int, ...] = (3, 2, 1)
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)
        object.__setattr__(self, "paces", require_ints(self, "paces", minimum=1))

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        drafts = view.times_remasked.masked_fill(~view.editable, 0).amax(-1)  # whole drafts before this one
        pace = torch.zeros_like(budget)
        for number, positions in enumerate(self.paces, start=1):
            pace = torch.where(drafts >= number, positions, pace)
        chosen = select_top(view.confidence, view.masked, budget.maximum(pace))
        sure = select_above(view.confidence, view.masked, self.threshold)
        return chosen | sure & (drafts == 0).unsqueeze(-1)
