"""Rules that are asked one after another, as one decider; and what a rule that declares nothing is given."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_plugin.core.editing import EditingRule
from prism_plugin.core.remasking import NeverRemasking, RemaskingRule
from prism_plugin.core.selection import at_most
from prism_plugin.core.unmasking import ConfidenceUnmasking, UnmaskingRule
from prism_plugin.core.view import Budget, Decision, StepView, unmask_grant
from prism_plugin.errors import SamplingError
from prism_plugin.types import TokenMask

# What a rule that does not declare its `needs`, such as a lambda, is given. Not the probability of visible tokens: that
# costs rows of the LM head.
UNDECLARED_NEEDS = frozenset({"noise", "quality", "entropy", "margin"})


@dataclass(frozen=True)
class Separate:
    """Takes back first, reveals what was granted and what was taken back, and overwrites last.

    Args:
        unmasking: Which masked positions to reveal.
        remasking: Which revealed positions to mask again.
        editing: Which revealed tokens to overwrite; None: none.
        neighbours: Positions on either side that a token takes along when it is taken back, as far as the grant reaches.
    """

    unmasking: UnmaskingRule = field(default_factory=ConfidenceUnmasking)
    remasking: RemaskingRule = field(default_factory=NeverRemasking)
    editing: EditingRule | None = None
    neighbours: int = 0

    @property
    def reach(self) -> Literal["active", "begun"]:
        """Where the editing rule may overwrite; what is filled and taken back is in the active block."""
        return getattr(self.editing, "blocks", "active")

    @property
    def needs(self) -> frozenset[str]:
        """Names of the features that the rules read; and what an editing rule writes, with its probability."""
        written = () if self.editing is None else ("best_visible", "best_visible_confidence")
        return frozenset(written).union(*(needs_of(rule) for rule in self._rules))

    @property
    def blind(self) -> bool:
        """Nothing is read of what the look says of masks or tokens, so tokens are drawn only where they are written."""
        return getattr(self.unmasking, "blind", False) and isinstance(self.remasking, NeverRemasking) and self.editing is None

    @property
    def repeats(self) -> bool:
        """No rule would decide otherwise at a second look that saw the same; of a lambda nothing is known."""
        return not any(getattr(rule, "by_chance", True) for rule in self._rules[1:])

    @property
    def takes_back(self) -> bool:
        """Some token may be masked again."""
        return not isinstance(self.remasking, NeverRemasking)

    @property
    def revises(self) -> bool:
        """Some token may be overwritten."""
        return self.editing is not None

    @property
    def _rules(self) -> tuple[object, ...]:
        rules = (self.unmasking, self.remasking, self.editing)
        return tuple(rule for rule in rules if rule is not None)

    def __call__(self, view: StepView, budget: Budget) -> Decision:
        masked_count = view.masked.sum(-1)
        revealed_count = view.editable.sum(-1) - masked_count
        remask = self._taken_back(_active(view), budget.remask)
        grant = unmask_grant(budget, revealed_count, remask.sum(-1), masked_count)
        reveal = _ask(self.unmasking, view, grant)
        if self.editing is None:
            return Decision(write=reveal, remask=remask)
        edit = _ask(self.editing, view) & view.revealed & ~remask
        if budget.edit is not None:
            edit = at_most(edit, view.require("best_visible_confidence", self.editing), budget.edit)
        tokens = torch.where(edit, view.require("best_visible", self.editing), view.candidates)
        return Decision(write=reveal | edit, remask=remask, tokens=tokens)

    def _taken_back(self, view: StepView, budget: Tensor) -> TokenMask:
        """What the remasking rule takes back, and its neighbours, the nearest first."""
        remask = _ask(self.remasking, view, budget)
        for _ in range(self.neighbours):
            beside = F.max_pool1d(remask.float(), 3, stride=1, padding=1).bool() & view.revealed & ~remask
            room = (budget - remask.sum(-1)).clamp(min=0)
            remask = remask | at_most(beside, -view.commit_confidence, room)
        return remask


def _active(view: StepView) -> StepView:
    """What belongs to the active block alone."""
    if view.active is None:
        return view
    parts = ("masked", "revealed", "editable")
    return replace(view, **{name: getattr(view, name) & view.active for name in parts})


def _ask(rule: UnmaskingRule | RemaskingRule | EditingRule, view: StepView, *budget: Tensor) -> TokenMask:
    answer = rule(view, *budget)
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool or answer.shape != view.masked.shape:
        found = f"{answer.dtype} of shape {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise SamplingError(
            f"a rule must return a bool mask of shape {list(view.masked.shape)}, but {name_of(rule)} returned {found}; "
            "choose with `select_top`."
        )
    return answer


def needs_of(rule: object) -> frozenset[str]:
    """What a rule or decider reads of a look beyond the candidates and their confidence."""
    return frozenset(getattr(rule, "needs", UNDECLARED_NEEDS))


def revises(decider: object) -> bool:
    """Whether it says that it may overwrite tokens."""
    return bool(getattr(decider, "revises", False))


def name_of(plug_in: object) -> str:
    """What messages call a rule."""
    return getattr(plug_in, "__name__", type(plug_in).__name__)
