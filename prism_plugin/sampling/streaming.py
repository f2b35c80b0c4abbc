"""Tells a transformers streamer of one row while it is filled: `put` what stands, `put_draft` what may still change, `end`."""

from typing import Any

import torch
from torch import Tensor

from prism_plugin.errors import SamplingError
from prism_plugin.sampling.canvas import LaidCanvas
from prism_plugin.sampling.records import StepRecord

# What generation code calls; `put_draft` is a part of TextDiffusionStreamer only, and others are told of whole blocks.
_PROTOCOL = ("put", "end")


class TokenStream:
    """The order of calls that transformers' own diffusion models keep (`DiffusionGemma`, transformers 5.23).

    First `put` with the prompt, which `skip_prompt` skips: all before the first token to generate, maybe nothing. Then
    `put_draft` after every look, with all that is not confirmed yet, masks included. A block is confirmed by `put`, with
    the fixed tokens that follow it, when the next one is looked at or nothing is left to do; where the decider reaches back
    into earlier blocks, only then. Last `end`. All values are int64 on the CPU, [1, tokens], without the row's padding.

    Args:
        streamer: Anything with `put` and `end`.
        canvas: Of one row.
        reaches_back: Tokens of earlier blocks may still change.

    Raises:
        SamplingError: If `streamer` is no streamer, wants logits, or there is more than one row to follow.
    """

    def __init__(self, streamer: Any, canvas: LaidCanvas, *, reaches_back: bool) -> None:
        missing = [name for name in _PROTOCOL if not callable(getattr(streamer, name, None))]
        if missing:
            raise SamplingError(
                f"`streamer` must have `put` and `end`, as transformers' streamers have, but {type(streamer).__name__} lacks "
                f"`{missing[0]}`; use `TextDiffusionStreamer(tokenizer)`."
            )
        # transformers' own, private mark of a streamer that draws logits instead of tokens.
        if getattr(streamer, "_takes_logits", False):
            raise SamplingError(
                f"`streamer` must take tokens, but {type(streamer).__name__} takes logits, which are computed for masked "
                "positions alone; set its `_takes_logits` to False."
            )
        rows = canvas.tokens.shape[0]
        if rows != 1:
            raise SamplingError(f"`streamer` follows one row, got {rows}; sample the rows one by one, or use `on_step`.")
        self._streamer = streamer
        self._reaches_back = reaches_back
        self._present = canvas.present[0].cpu()
        self._block_of = canvas.block_of[0].cpu()
        self._confirmed = 0
        self._confirm(canvas.tokens[0].cpu(), self._first_of(0))

    def on_record(self, record: StepRecord) -> None:
        """Tell of one look."""
        looked_at = self._block_of[~record.confidence[0][self._present].isnan()]
        # no mask was looked at in a full block, which is not confirmed as long as it is looked at
        if looked_at.numel() and not self._reaches_back:
            first = self._first_of(int(looked_at[0]))
            if first > self._confirmed:
                self._confirm(record.tokens_before[0][self._present], first)
        if hasattr(self._streamer, "put_draft"):
            self._streamer.put_draft(record.tokens_after[0][self._present][None, self._confirmed :])

    def close(self, sequence: Tensor) -> None:
        """Confirm what is left of the finished row, [length] in the layout of the request, and end."""
        tokens = sequence.cpu()[self._present]
        self._confirm(tokens, len(tokens))
        self._streamer.end()

    def _first_of(self, block: int) -> int:
        found = (self._block_of == block).nonzero()
        return int(found[0]) if found.numel() else len(self._block_of)

    def _confirm(self, tokens: Tensor, end: int) -> None:
        self._streamer.put(tokens[None, self._confirmed : end].to(torch.int64))
        self._confirmed = end
