"""Safety: what every remasking and editing rule, and every decider, has to spare."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prism_plugin.core.view import Budget
from prism_plugin.decoding.state import State
from prism_plugin.types import PerRow, TokenMask


@dataclass(frozen=True)
class Safety:
    """Bounds around what rules choose. They narrow what a rule sees and what it is granted, so that it cannot miss them.

    Attributes:
        times: Times that one position may be taken back or overwritten; None: no cap.
        share: Most of the positions in reach that may be taken back at a look, and as many that may be overwritten, rounded
            down but at least one; None: no cap.
        tabu: Positions of a row that were last taken back or overwritten and are left alone, a queue; None: none.
    """

    times: int | None = None
    share: float | None = None
    tabu: int | None = None

    def not_spared(self, at: State, visible: TokenMask) -> TokenMask:
        """Which visible positions may be taken back or overwritten."""
        if self.times is None and self.tabu is None:
            return visible
        changes = at.times_remasked + at.times_edited
        if self.times is not None:
            visible = visible & (changes < self.times)
        if self.tabu is not None:
            recent = changes.sum(-1, keepdim=True) - at.last_changed < self.tabu
            visible = visible & ~(recent & (at.last_changed > 0))
        return visible

    def noted(self, at: State, remask: TokenMask, edited: TokenMask | None) -> dict[str, Tensor]:
        """What is remembered of a decision: the parts of the state that it changes.

        Args:
            at: Before the decision.
            remask: What is taken back.
            edited: What is overwritten; None: nothing can be.
        """
        parts = {} if edited is None else {"times_edited": at.times_edited + edited}
        if self.tabu is not None:
            again = remask if edited is None else remask | edited
            changes = (at.times_remasked + at.times_edited + again).sum(-1, keepdim=True)
            parts["last_changed"] = torch.where(again, changes, at.last_changed)
        return parts

    def granted(self, budget: Budget, reach: PerRow) -> Budget:
        """A budget within the share.

        Args:
            budget: What the schedule grants.
            reach: Positions that may be decided about.
        """
        if self.share is None:
            return budget
        most = (reach * self.share).long().clamp(min=1)
        return replace(budget, remask=budget.remask.minimum(most), edit=most)
