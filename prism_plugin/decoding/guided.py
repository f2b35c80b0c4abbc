"""A look at two conditions: with the prompt, and without it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from prism_plugin.core.validation import require_number
from prism_plugin.decoding.looks import LOOKS, Asked, Seen, Want, history_of, told
from prism_plugin.decoding.state import Memory, State
from prism_plugin.modeling.headed import HeadedBackbone


@LOOKS.register("guided")
@dataclass(frozen=True)
class GuidedLook:
    """Classifier-free guidance, as LLaDA has it: both conditions in one call of twice the rows (arXiv 2502.09992, A.2).

    The logits are u + (scale + 1) (c - u), where c sees the prompt, and u sees masks in its place. A look counts as two
    forwards. The quality is that of the tokens with their prompt.

    Args:
        scale: > 0.
    """

    scale: float
    tells_block: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "scale", "a number above 0", low=0, open_low=True)

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        canvas, tokens = state.canvas, state.tokens
        given = canvas.attention_mask.bool() & ~canvas.editable
        both = torch.cat((tokens, tokens.masked_fill(given, model.mask_token_id)))
        asked, mask = Asked.of(want), told(model, state, want)
        history = history_of(model, state, want)
        output = model(
            both,
            None if mask is None else mask.repeat(2, 1),
            logits_at=torch.cat((asked.index, asked.index + tokens.numel())),
            with_quality=want.quality,
            history=None if history is None else history.moved(lambda part: part.repeat(2, 1)),
        )
        with_prompt, without = output.logits.float().chunk(2)
        rows = without + (self.scale + 1) * (with_prompt - without)
        quality_logits = output.quality_logits[: len(tokens)] if want.quality else None
        return asked.seen(model, rows, quality_logits, num_forwards=2), memory
