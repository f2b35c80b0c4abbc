"""Which revealed positions to mask again. A rule takes back at most its budget, and may take back less."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch

from prism_plugin.core.schedules import even_target
from prism_plugin.core.selection import at_most, select_top
from prism_plugin.core.validation import require_choice, require_number
from prism_plugin.core.view import StepView
from prism_plugin.registry import Registry
from prism_plugin.types import PerRow, PerToken, TokenMask


class RemaskingRule(Protocol):
    """Picks the positions to take back: a subset of `view.revealed` of at most `budget` positions per row.

    It may declare `needs`, what it reads of a look, and `by_chance`, whether it may take back at a second look what it left
    at a first that saw the same. A rule that does not declare the latter is asked as long as steps are left.
    """

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask: ...


REMASKING: Registry[RemaskingRule] = Registry("remasking rule")


@REMASKING.register("never")
@dataclass(frozen=True)
class NeverRemasking:
    """Take nothing back: what is revealed stays."""

    needs: ClassVar[frozenset[str]] = frozenset()
    by_chance: ClassVar[bool] = False

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return torch.zeros_like(view.revealed)


@REMASKING.register("random")
@dataclass(frozen=True)
class RandomRemasking:
    """Take back positions at random: the control that shows what a score is worth."""

    needs: ClassVar[frozenset[str]] = frozenset({"noise"})
    by_chance: ClassVar[bool] = True

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        # random unmasking ranks by the same numbers, at other positions: revealed and masked are disjoint
        return select_top(view.require("noise", self), view.revealed, budget)


@REMASKING.register("quality")
@dataclass(frozen=True)
class QualityRemasking:
    """Take back the positions with the lowest quality, always as many as granted (PRISM, arXiv 2510.01384)."""

    needs: ClassVar[frozenset[str]] = frozenset({"quality"})
    by_chance: ClassVar[bool] = False

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return select_top(-view.require("quality", self), view.revealed, budget)


@REMASKING.register("quality_threshold")
@dataclass(frozen=True)
class QualityThresholdRemasking:
    """Take back the positions whose quality is below a threshold, worst first, at most the grant.

    Args:
        threshold: Probability in [0, 1] that a token is right; what is below goes.
    """

    threshold: float
    needs: ClassVar[frozenset[str]] = frozenset({"quality"})
    by_chance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        quality = view.require("quality", self)
        return at_most(view.revealed & (quality < self.threshold), -quality, budget)


@REMASKING.register("redraft")
@dataclass(frozen=True)
class RedraftRemasking:
    """Take back everything where anything is doubted, and nothing elsewhere: for a head that knows that, but not where.

    An error that was written with confidence bends what is written after it, so a wrong draft is often wrong in many places
    that agree with each other. Of more than the grant, the worst go; `RedraftSchedule` grants all, and only at a full canvas.

    Args:
        threshold: Probability in [0, 1]; a row is doubted when the score of one of its tokens is below.
        score: "quality", or "visible_confidence", the probability that the language model itself gives to the token that it
            sees there: no head, but a row of the LM head for every token of the block.
    """

    threshold: float
    score: Literal["quality", "visible_confidence"] = "quality"
    by_chance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)
        require_choice(self, "score", ("quality", "visible_confidence"))

    @property
    def needs(self) -> frozenset[str]:
        """The score that it reads."""
        return frozenset({self.score})

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        score = view.require(self.score, self)
        doubted = (view.revealed & (score < self.threshold)).any(-1, keepdim=True)
        return at_most(view.revealed & doubted, -score, budget)


@REMASKING.register("commit_confidence")
@dataclass(frozen=True)
class CommitConfidenceRemasking:
    """Take back the positions that the model was least sure of when it wrote them; needs no quality head."""

    needs: ClassVar[frozenset[str]] = frozenset()
    by_chance: ClassVar[bool] = False

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        return select_top(-view.commit_confidence, view.revealed, budget)


@REMASKING.register("remdm_conf")
@dataclass(frozen=True)
class RemdmConfRemasking:
    """Take back each position by chance, the less sure the likelier: ReMDM's confidence schedule (arXiv 2503.00307).

    Position i goes with probability min(1, scale * sigma_max * softmax_i(-commit_confidence)), the softmax over the revealed
    positions of the row and sigma_max = min(1, (1 - alpha_s) / alpha_t), where alpha is the share revealed before (t) and
    after (s) the step under the even schedule. The paper knows no cap; grant a generous `num_remask` to follow it. Where
    more are drawn than granted, those that the model was least sure of go.

    Args:
        scale: Multiplies the probability, > 0. At the paper's 1 the expected number of remasks per step is at most one,
            whatever the length.
    """

    scale: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"noise"})
    by_chance: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "scale", "a number above 0", low=0, open_low=True)

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        drawn = view.revealed & (view.require("noise", self) < self.probabilities(view))
        return at_most(drawn, -view.commit_confidence, budget)

    def probabilities(self, view: StepView) -> PerToken:
        """Give the probability with which each position is drawn; 0 where nothing is revealed."""
        before = even_target(view.step - 1, view.num_steps, view.total)
        after = even_target(view.step, view.num_steps, view.total)
        sigma_max = ((view.total - after) / before.clamp(min=1)).clamp(max=1) * (before > 0)
        # a finite stand-in for -inf: a row without revealed positions must give 0 and not NaN
        scores = (-view.commit_confidence).masked_fill(~view.revealed, torch.finfo(view.commit_confidence.dtype).min)
        share = torch.softmax(scores, dim=-1) * view.revealed
        return (self.scale * sigma_max.unsqueeze(-1) * share).clamp(max=1)
