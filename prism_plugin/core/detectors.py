"""Remasking rules that tell a wrong token by a score: how sure the model was, is, or has been on the way."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from prism_plugin.core.remasking import REMASKING
from prism_plugin.core.selection import at_most, select_top
from prism_plugin.core.validation import require_choice, require_number
from prism_plugin.core.view import StepView
from prism_plugin.types import PerRow, TokenMask

# What a rule may tell a wrong token by; all are probabilities. `commit_confidence` alone costs nothing.
SCORES = (
    "quality", "mean_quality", "visible_confidence", "mean_confidence", "shadow_confidence", "context_confidence",
    "commit_confidence",
)  # fmt: skip


class _ByScore:
    """A rule with a field `score`."""

    score: str
    by_chance: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The score that it reads."""
        return frozenset() if self.score == "commit_confidence" else frozenset({self.score})


@REMASKING.register("lowest")
@dataclass(frozen=True)
class LowestRemasking(_ByScore):
    """Take back the positions with the lowest score, always as many as granted.

    With "mean_confidence" it is FreeCorrection (arXiv 2602.02927), which averages the probability of a token over its life.

    Args:
        score: One of `SCORES`.
    """

    score: str

    def __post_init__(self) -> None:
        require_choice(self, "score", SCORES)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return select_top(-view.score(self.score, self), view.revealed, budget)


@REMASKING.register("below")
@dataclass(frozen=True)
class BelowRemasking(_ByScore):
    """Take back the positions whose score is below a threshold, lowest first, at most the grant.

    With "visible_confidence" it is T2M's LowProb (arXiv 2604.18738), and CDLM's refinement (arXiv 2512.15596).

    Args:
        threshold: In [0, 1].
        score: One of `SCORES`.
        quality_below: In [0, 1]: only tokens whose quality is below, too; None: any token.
    """

    threshold: float
    score: str
    quality_below: float | None = None

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)
        require_choice(self, "score", SCORES)
        if self.quality_below is not None:
            require_number(self, "quality_below", "a probability in [0, 1]", low=0, high=1)

    @property
    def needs(self) -> frozenset[str]:
        """The score, and the quality where that restricts it."""
        return super().needs | ({"quality"} if self.quality_below is not None else set())

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        score = view.score(self.score, self)
        low = view.revealed & (score < self.threshold)
        if self.quality_below is not None:
            low = low & (view.require("quality", self) < self.quality_below)
        return at_most(low, -score, budget)


@REMASKING.register("replaced")
@dataclass(frozen=True)
class ReplacedRemasking:
    """Take back the tokens in whose place the model is sure of another (T2M's T2T-Remask, arXiv 2604.18738).

    Args:
        threshold: Probability in [0, 1] that the other token must exceed.
    """

    threshold: float
    needs: ClassVar[frozenset[str]] = frozenset({"best_visible", "best_visible_confidence"})
    by_chance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        best, confidence = (view.require(name, self) for name in ("best_visible", "best_visible_confidence"))
        replaced = view.revealed & (best != view.tokens) & (confidence > self.threshold)
        return at_most(replaced, confidence, budget)


@REMASKING.register("fallen")
@dataclass(frozen=True)
class FallenRemasking:
    """Take back the tokens whose probability fell since the look before (T2M's LogitDiff, arXiv 2604.18738).

    Args:
        threshold: Fall of the probability, in [0, 1], that must be exceeded.
    """

    threshold: float
    needs: ClassVar[frozenset[str]] = frozenset({"previous_confidence", "visible_confidence"})
    by_chance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a fall of a probability in [0, 1]", low=0, high=1)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        fall = view.require("previous_confidence", self) - view.require("visible_confidence", self)
        return at_most(view.revealed & (fall > self.threshold), fall, budget)


@REMASKING.register("backtrack")
@dataclass(frozen=True)
class BacktrackRemasking:
    """Where a row is doubted, take back what was written since the doubt began, and more at each failure (ours).

    An error bends what is written after it, and it is what comes later that is doubted. The token below the threshold that was
    written first says when the doubt began; at a second failure the rule goes back twice as many looks, and so on.

    Args:
        threshold: In [0, 1]; a row is doubted when the score of one of its tokens is below.
        score: One of `SCORES`.
    """

    threshold: float
    score: str = "quality"
    by_chance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)
        require_choice(self, "score", SCORES)

    @property
    def needs(self) -> frozenset[str]:
        """The score, and how many looks ago each token was written."""
        return frozenset({"looks_since", *(set() if self.score == "commit_confidence" else {self.score})})

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        since = view.require("looks_since", self)
        doubted = view.revealed & (view.score(self.score, self) < self.threshold)
        oldest = torch.where(doubted, since, -1.0).amax(-1, keepdim=True)
        failures = view.times_remasked.masked_fill(~view.editable, 0).amax(-1, keepdim=True)
        reach = (oldest + 1) * (failures + 1) - 1  # nothing where nothing is doubted
        return at_most(view.revealed & (since <= reach), -since, budget)
