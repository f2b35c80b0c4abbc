"""Deciders that rank masks and tokens together; their registry."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from prism_plugin.core.selection import at_most, select_top
from prism_plugin.core.validation import require_choice, require_number
from prism_plugin.core.view import Budget, Decider, Decision, StepView, unmask_grant
from prism_plugin.registry import Registry
from prism_plugin.types import PerToken

DECIDERS: Registry[Decider] = Registry("decider")


@DECIDERS.register("p2")
@dataclass(frozen=True)
class P2Decider:
    """Path planning (P2, arXiv 2502.03540): keep what ranks highest of drawn and standing tokens, mask the rest.

    A masked position scores `eta` times the log of its candidate's probability, a standing token the log of its own under the
    planner. As many as the schedule's target are kept or filled; a standing token below is taken back, as many as it grants.

    Args:
        eta: Weight of masked positions, > 0: the larger, the more they have to be sure to be filled in place of a token.
        planner: "quality", the quality head; "visible_confidence", the language model's own probability (self-planning);
            "commit_confidence", its probability when it wrote the token; "running_confidence", the largest that it has had for
            the position at any look (RCR, arXiv 2508.13148).
    """

    eta: float = 1.0
    planner: Literal["quality", "visible_confidence", "commit_confidence", "running_confidence"] = "quality"
    reach: ClassVar[Literal["active", "begun"]] = "active"
    blind: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    takes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "eta", "a number above 0", low=0, open_low=True)
        require_choice(self, "planner", ("quality", "visible_confidence", "commit_confidence", "running_confidence"))

    @property
    def needs(self) -> frozenset[str]:
        """The planner's score."""
        return frozenset() if self.planner == "commit_confidence" else frozenset({self.planner})

    def __call__(self, view: StepView, budget: Budget) -> Decision:
        tiny = torch.finfo(torch.float32).tiny
        of_tokens = view.score(self.planner, self).clamp(min=tiny).log()
        of_masks = of_tokens if self.planner == "running_confidence" else view.confidence.clamp(min=tiny).log()
        return keep_highest(view, budget, torch.where(view.masked, self.eta * of_masks, of_tokens))


def keep_highest(view: StepView, budget: Budget, scores: PerToken) -> Decision:
    """Keep or fill what ranks highest, as many as the target; take back the rest of what stands, within the grant.

    Args:
        view: The look.
        budget: What the schedule grants.
        scores: Of masked and standing tokens, on one scale.
    """
    kept = select_top(scores, view.editable, budget.target)
    remask = select_top(-scores, view.revealed & ~kept, budget.remask)
    # as many masks are filled as the target asks for after what was really taken back
    grant = unmask_grant(budget, (view.editable & ~view.masked).sum(-1), remask.sum(-1), view.masked.sum(-1))
    return Decision(write=select_top(scores, view.masked, grant), remask=remask)


@DECIDERS.register("remedi")
@dataclass(frozen=True)
class RemediDecider:
    """Rank tokens by their quality, and masks by that of what would be written there; keep the highest (RemeDi).

    arXiv 2509.23653. A head that was trained by RemeDi's objective says of a mask how likely the model is to be right there;
    where a head was not, the candidate's own confidence stands for it.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"quality", "mask_quality"})
    reach: ClassVar[Literal["active", "begun"]] = "active"
    blind: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    takes_back: ClassVar[bool] = True

    def __call__(self, view: StepView, budget: Budget) -> Decision:
        quality, of_masks = (view.require(name, self) for name in ("quality", "mask_quality"))
        return keep_highest(view, budget, torch.where(view.masked, of_masks, quality))


@DECIDERS.register("wino")
@dataclass(frozen=True)
class WinoDecider:
    """Write widely, verify each token by a mask of its own in the same look, take back what is not verified (WINO).

    arXiv 2507.18578, with its code's bounds: of m masks at most 0.7 m are written at a look, but at least 5 may and at most 20;
    fewer are taken back than the look before wrote, and none where only one is written. For a `ShadowLook`.

    Args:
        threshold: Confidence that a candidate must exceed to be written, in [0, 1]; the surest is written anyway.
        verify: Probability at its shadow below which a token is taken back, in [0, 1].
    """

    threshold: float = 0.6
    verify: float = 0.9
    needs: ClassVar[frozenset[str]] = frozenset({"shadow_confidence", "looks_since"})
    reach: ClassVar[Literal["active", "begun"]] = "active"
    blind: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    takes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("threshold", "verify"):
            require_number(self, name, "a probability in [0, 1]", low=0, high=1)

    def __call__(self, view: StepView, budget: Budget) -> Decision:
        shadow, since = (view.require(name, self) for name in ("shadow_confidence", "looks_since"))
        count = view.masked.sum(-1)
        most = (0.7 * count).long().clamp(min=5, max=20)
        sure = (view.masked & (view.confidence > self.threshold)).sum(-1).clamp(min=1).minimum(most)
        written_before = ((since == 0) & view.revealed).sum(-1)
        may_go = (written_before - 1).clamp(min=0).minimum(budget.remask) * (sure.minimum(count) > 1)
        remask = at_most(view.revealed & (shadow < self.verify), -shadow, may_go)
        grant = unmask_grant(budget, (view.editable & ~view.masked).sum(-1), remask.sum(-1), count)
        return Decision(write=select_top(view.confidence, view.masked, sure.maximum(grant)), remask=remask)


@DECIDERS.register("refined")
@dataclass(frozen=True)
class RefinedDecider:
    """Write what a refiner says, and the surest masks beside it as far as the grant reaches (CoDiLA, arXiv 2603.20216)."""

    needs: ClassVar[frozenset[str]] = frozenset({"refined", "refined_confidence"})
    reach: ClassVar[Literal["active", "begun"]] = "active"
    blind: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    takes_back: ClassVar[bool] = False

    def __call__(self, view: StepView, budget: Budget) -> Decision:
        said = view.require("refined", self)
        agreed = view.masked & (said >= 0)
        revealed = (view.editable & ~view.masked).sum(-1)
        grant = unmask_grant(budget, revealed, torch.zeros_like(revealed), view.masked.sum(-1))
        more = select_top(view.confidence, view.masked & ~agreed, (grant - agreed.sum(-1)).clamp(min=0))
        tokens = torch.where(agreed, said, view.candidates)
        return Decision(write=agreed | more, remask=torch.zeros_like(agreed), tokens=tokens)
