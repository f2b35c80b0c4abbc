"""What a rule or the model may do wrong in the loop."""

from enum import IntEnum

import torch

from prism_plugin.core.view import Budget, Decision, StepView
from prism_plugin.types import PerRow, PerToken, TokenIds


class Fault(IntEnum):
    """What a rule or the model did wrong. Kept on the device and read at the end, since a check would make each step wait."""

    NONE = 0
    WRITES_ELSEWHERE = 1
    TAKES_BACK_ELSEWHERE = 2
    OVER_BUDGET = 3
    NOT_A_NUMBER = 4
    WRITES_A_MASK = 5
    QUALITY_NOT_A_NUMBER = 6
    VISIBLE_NOT_A_NUMBER = 7
    FEATURE_NOT_A_NUMBER = 8


IN_WORDS = {
    Fault.WRITES_ELSEWHERE: "an unmasking rule may choose only among `view.masked`, but {unmasking} chose other positions; "
    "pass that mask as `eligible` to `select_top`.",
    Fault.TAKES_BACK_ELSEWHERE: "a remasking rule may choose only among `view.revealed`, but {remasking} chose other "
    "positions; pass that mask as `eligible` to `select_top`.",
    Fault.OVER_BUDGET: "a remasking rule must stay within its budget, but {remasking} took back more; choose with "
    "`select_top`.",
    Fault.NOT_A_NUMBER: "the model's logits must be numbers, but NaN or infinity came at a masked position; look at its "
    "weights, and load a model in bfloat16 or float32 if float16 is too narrow for it.",
    Fault.WRITES_A_MASK: "a decider writes tokens that may be drawn, but {unmasking} wrote the mask token; take it back by "
    "`remask`.",
    Fault.QUALITY_NOT_A_NUMBER: "the quality of a token must be a number, but the quality head gave NaN; look at its "
    "weights and the backbone's.",
    Fault.VISIBLE_NOT_A_NUMBER: "the model's logits must be numbers, but NaN or infinity came at a revealed position; look "
    "at its weights.",
    Fault.FEATURE_NOT_A_NUMBER: "what {unmasking} or {remasking} reads must be numbers, but a feature gave NaN where tokens "
    "may be decided about; look at the model's weights, and at the feature if it is yours.",
}

# What only a rule does wrong: with numbers that are none, training has its own way.
OF_RULES = (Fault.WRITES_ELSEWHERE, Fault.TAKES_BACK_ELSEWHERE, Fault.OVER_BUDGET)
_CHECKED_APART = ("noise", "quality", "visible_confidence")  # the first is made here, the others have words of their own


def fault_of(
    view: StepView, decision: Decision, budget: Budget, tokens: TokenIds, mask_token_id: int, quality: PerToken | None
) -> PerRow:
    """Each row's fault at a look; of several the last of those that are looked for.

    Args:
        view: What the decider saw.
        decision: What it decided.
        budget: What it was granted.
        tokens: The canvas after the decision.
        mask_token_id: Id of the mask token.
        quality: What the quality head gave at the look; None where nobody asked.
    """
    # only a decider that says which tokens it writes may write over tokens
    writable = view.masked if decision.tokens is None else view.masked | view.revealed
    found = {
        Fault.OVER_BUDGET: decision.remask.sum(-1) > budget.remask,
        Fault.TAKES_BACK_ELSEWHERE: (decision.remask & ~view.revealed).any(-1),
        Fault.WRITES_A_MASK: (decision.write & ~decision.remask & (tokens == mask_token_id)).any(-1),
        Fault.NOT_A_NUMBER: view.confidence.isnan().any(-1),
    }
    # a comparison with NaN is False, so a rule would go on in silence
    broken = [
        (feature.isnan() & view.editable).any(-1)
        for name, feature in view.features.items()
        if feature.is_floating_point() and name not in _CHECKED_APART
    ]
    if broken:
        found[Fault.FEATURE_NOT_A_NUMBER] = torch.stack(broken).any(0)
    if view.visible_confidence is not None:
        found[Fault.VISIBLE_NOT_A_NUMBER] = view.visible_confidence.isnan().any(-1)
    if quality is not None:
        found[Fault.QUALITY_NOT_A_NUMBER] = (quality.isnan() & view.editable).any(-1)
    found[Fault.WRITES_ELSEWHERE] = (decision.write & ~writable).any(-1)
    fault = torch.zeros_like(view.step)
    for number, where in found.items():
        fault = fault.masked_fill(where, number)
    return fault
