"""Deciders that rank masks and tokens together; their registry."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from prism_plugin.core.selection import select_top
from prism_plugin.core.validation import require_number
from prism_plugin.core.view import Budget, Decider, Decision, StepView
from prism_plugin.registry import Registry

DECIDERS: Registry[Decider] = Registry("decider")


@DECIDERS.register("p2")
@dataclass(frozen=True)
class P2Decider:
    """Path planning (P2, arXiv 2502.03540): keep what ranks highest of drawn and standing tokens, mask the rest.

    A masked position scores `eta` times the log of its candidate's probability, a standing token the log of its own under the
    planner. As many as the schedule's target are kept or filled; a standing token below is taken back, as many as it grants.

    Args:
        eta: Weight of masked positions, > 0: the larger, the more they have to be sure to be filled in place of a token.
        planner: "quality", the quality head; "visible_confidence", the language model's own probability (self-planning).
    """

    eta: float = 1.0
    planner: Literal["quality", "visible_confidence"] = "quality"
    reach: ClassVar[Literal["active", "begun"]] = "active"
    blind: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    takes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "eta", "a number above 0", low=0, open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        """The planner's score."""
        return frozenset({self.planner})

    def __call__(self, view: StepView, budget: Budget) -> Decision:
        tiny = torch.finfo(torch.float32).tiny
        of_tokens = view.require(self.planner, self).clamp(min=tiny).log()
        scores = torch.where(view.masked, self.eta * view.confidence.clamp(min=tiny).log(), of_tokens)
        kept = select_top(scores, view.editable, budget.target)
        remask = select_top(-scores, view.revealed & ~kept, budget.remask)
        # as many masks are filled as the target asks for after what was really taken back
        grant = (budget.target - (view.editable & ~view.masked).sum(-1) + remask.sum(-1)).clamp(min=0)
        return Decision(write=select_top(scores, view.masked, grant), remask=remask)
