"""One look written down, in the layout of the request, for traces and whoever watches."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prism_plugin.decoding.loop import Step
from prism_plugin.decoding.state import State
from prism_plugin.sampling.canvas import LaidCanvas
from prism_plugin.types import PerRow, PerToken, TokenIds, TokenMask


@dataclass(frozen=True)
class StepRecord:
    """One look, for a trace; on the CPU, laid out as the returned `sequences`, at most 34 bytes a position, 4 more a score.

    Attributes:
        step: Number of the look, from 0; counts the forwards of the batch.
        looked: Rows that took part, [batch]; the others were done.
        tokens_before: Tokens that the network saw.
        tokens_after: Tokens after the decisions, and after the padding that follows an EOS.
        unmasked: Positions written at this look: masks that were filled, and tokens that a rule overwrote.
        remasked: Positions masked again at this look.
        confidence: Probability of the token drawn for each masked position of the active block, and of the token that took the
            place of another; NaN elsewhere.
        quality: Quality of each generated token that was visible; NaN elsewhere; None when no rule needs it.
        num_forwards: Calls of the network that the look took for each row, [batch].
        scores: What else rules read of visible tokens, by the names of the features; NaN elsewhere.
    """

    step: int
    looked: Tensor
    tokens_before: TokenIds
    tokens_after: TokenIds
    unmasked: TokenMask
    remasked: TokenMask
    confidence: PerToken
    quality: PerToken | None
    num_forwards: PerRow
    scores: Mapping[str, PerToken] = field(default_factory=dict)


# Features that are scores of visible tokens.
_SCORES = ("visible_confidence", "mean_quality", "mean_confidence", "shadow_confidence", "best_visible_confidence")


def record_of(number: int, canvas: LaidCanvas, before: State, step: Step) -> StepRecord:
    """Write down a look.

    Args:
        number: Of the look, from 0.
        canvas: Of the whole batch.
        before: Every row before the look.
        step: The look.
    """
    rows, view = step.rows, step.view

    def lay(part: Tensor, full: Tensor, outside: Tensor | float | bool) -> Tensor:
        return canvas.restore(full.index_put((rows,), part), outside).cpu()

    nothing = torch.zeros_like(canvas.editable)
    nan = float("nan")
    unknown = torch.full_like(before.quality, nan)
    quality = None
    if view.quality is not None:
        begun = canvas.editable & (canvas.block_of <= before.block.unsqueeze(-1))
        seen = begun[rows] & ~view.masked
        quality = lay(view.quality.masked_fill(~seen, nan), unknown, nan)
    confidence = view.confidence.masked_fill(~view.masked, nan)
    overwritten = step.decision.write & ~view.masked
    if "best_visible_confidence" in view.features:
        confidence = torch.where(overwritten, view.features["best_visible_confidence"], confidence)
    stands = view.editable & ~view.masked
    scores = {name: view.features[name].masked_fill(~stands, nan) for name in _SCORES if name in view.features}
    return StepRecord(
        step=number,
        looked=torch.zeros_like(before.block, dtype=torch.bool).index_fill(0, rows, True).cpu(),
        tokens_before=canvas.restore(before.tokens, canvas.request).cpu(),
        tokens_after=canvas.restore(step.state.tokens, canvas.request).cpu(),
        unmasked=lay(step.decision.write, nothing, False),
        remasked=lay(step.decision.remask, nothing, False),
        confidence=lay(confidence, unknown, nan),
        quality=quality,
        num_forwards=(step.state.num_forward_passes - before.num_forward_passes).cpu(),
        scores={name: lay(score, unknown, nan) for name, score in scores.items()},
    )
