"""Rules that are asked one after another, as one decider; and what a rule that declares nothing is given."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prism_plugin.core.editing import EditingRule
from prism_plugin.core.remasking import NeverRemasking, RemaskingRule
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
    """

    unmasking: UnmaskingRule = field(default_factory=ConfidenceUnmasking)
    remasking: RemaskingRule = field(default_factory=NeverRemasking)
    editing: EditingRule | None = None
    reach: ClassVar[Literal["active", "begun"]] = "active"

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
    def _rules(self) -> tuple[object, ...]:
        rules = (self.unmasking, self.remasking, self.editing)
        return tuple(rule for rule in rules if rule is not None)

    def __call__(self, view: StepView, budget: Budget) -> Decision:
        masked_count = view.masked.sum(-1)
        revealed_count = view.editable.sum(-1) - masked_count
        remask = _ask(self.remasking, view, budget.remask)
        grant = unmask_grant(budget, revealed_count, remask.sum(-1), masked_count)
        reveal = _ask(self.unmasking, view, grant)
        if self.editing is None:
            return Decision(write=reveal, remask=remask)
        edit = _ask(self.editing, view) & view.revealed & ~remask
        tokens = torch.where(edit, view.require("best_visible", self.editing), view.candidates)
        return Decision(write=reveal | edit, remask=remask, tokens=tokens)


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


def name_of(plug_in: object) -> str:
    """What messages call a rule."""
    return getattr(plug_in, "__name__", type(plug_in).__name__)
