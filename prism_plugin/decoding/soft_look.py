"""A look that sees masks softly: mixed with what the look before would have written there."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prism_plugin.core.soft import SoftTokens, soft_tokens
from prism_plugin.core.validation import require_int, require_number
from prism_plugin.decoding.looks import LOOKS, Asked, Seen, Want, history_of, told
from prism_plugin.decoding.state import Memory, State
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.soft_inputs import require_soft_inputs


@LOOKS.register("soft")
@dataclass(frozen=True)
class SoftLook:
    """Masked positions are mixtures of the mask's embedding and those of the likeliest tokens of the look before.

    Soft-Masked Diffusion (arXiv 2510.17206), Mixture of Inputs (arXiv 2505.14827) and DMax's soft parallel decoding (arXiv
    2604.08302). A position that was not masked at the look before is a plain mask. The objective `soft_masked` trains models to
    read this; without it, it is off what they have learnt.

    Args:
        mix: Most of a mixture that is not the mask, in (0, 1].
        top_k: Tokens in a mixture, >= 1.
    """

    mix: float = 0.8
    top_k: int = 3
    tells_block: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "mix", "a share in (0, 1]", low=0, high=1, open_low=True)
        require_int(self, "top_k", minimum=1)

    def may_look_at(self, model: HeadedBackbone) -> None:
        """Refuse a model that reads no embeddings."""
        require_soft_inputs(model)

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        asked = Asked.of(want)
        output = model(
            state.tokens,
            told(model, state, want),
            logits_at=asked.index,
            with_quality=want.quality,
            history=history_of(model, state, want),
            soft=self._recalled(asked.masked, memory, model.mask_token_id),
        )
        rows = output.logits[: want.num_masked]
        mix = torch.full((want.num_masked,), self.mix, device=rows.device)
        soft = soft_tokens(rows, asked.masked, mask_token_id=model.mask_token_id, top_k=self.top_k, mix=mix)
        return asked.seen(model, output.logits, output.quality_logits), _laid(soft, state.tokens)

    def _recalled(self, masked: Tensor, memory: Memory, mask_token_id: int) -> SoftTokens | None:
        if not memory:
            return None
        ids, weights = (memory[name].flatten(0, 1)[masked] for name in ("ids", "weights"))
        plain = weights.sum(-1, keepdim=True) == 0  # no mixture is known here
        first = torch.arange(ids.shape[-1], device=ids.device) == 0
        return SoftTokens(masked, ids.masked_fill(plain, mask_token_id), torch.where(plain, first.float(), weights))


def _laid(soft: SoftTokens, tokens: Tensor) -> Memory:
    """Mixtures laid out by position, with weights of 0 where there is none."""
    parts = soft.ids.shape[-1]
    laid = {}
    for name in ("ids", "weights"):
        known = getattr(soft, name)
        laid[name] = known.new_zeros(tokens.numel(), parts).index_copy(0, soft.index, known).view(*tokens.shape, parts)
    return laid
