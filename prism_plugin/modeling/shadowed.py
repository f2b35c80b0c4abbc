"""Rows with shadows: masks behind a row that see all but one token each, and that no token sees."""

from typing import Any

import torch
from torch import Tensor, nn

from prism_plugin.backbones.call import pairs_of
from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.types import TokenIds, TokenMask


def shadowed(
    spec: BackboneSpec, input_ids: TokenIds, attention_mask: TokenMask | None, shadows: Tensor, mask_token_id: int, first: int
) -> dict[str, Any]:
    """What a backbone is called with where rows have shadows (WINO, arXiv 2507.18578): tokens, mask of pairs, positions.

    Args:
        spec: The backbone's family.
        input_ids: Rows that begin in column 0.
        attention_mask: True (or 1) where there is a token; None: everywhere.
        shadows: Columns that have one, [batch, shadows]; -1 for none, whose shadow sees all and is seen by none.
        mask_token_id: What a shadow is.
        first: The position of a row's first token.
    """
    batch, length = input_ids.shape
    count = shadows.shape[1]
    present = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    exists = shadows >= 0
    columns = torch.arange(length, device=input_ids.device)
    among = pairs_of(spec, present).squeeze(1)
    allowed = torch.zeros(batch, length + count, length + count, dtype=torch.bool, device=input_ids.device)
    allowed[:, :length, :length] = among
    of_shadows = among.gather(1, shadows.clamp(min=0).unsqueeze(-1).expand(-1, -1, length))
    allowed[:, length:, :length] = of_shadows & (columns != shadows.unsqueeze(-1))
    allowed[:, length:, length:] = exists.unsqueeze(1) | torch.eye(count, dtype=torch.bool, device=input_ids.device)
    positions = first + torch.cat((columns.expand(batch, -1), shadows.clamp(min=0)), dim=1)
    more = input_ids.new_full((batch, count), mask_token_id)
    return {
        "input_ids": torch.cat((input_ids, more), dim=1),
        "attention_mask": allowed.unsqueeze(1),
        "position_ids": positions,
    }


def as_attended(allowed: Tensor, backbone: nn.Module) -> Tensor:
    """A bool mask of pairs as a backbone's attention adds or reads it."""
    if getattr(backbone.config, "_attn_implementation", None) != "eager":
        return allowed
    dtype = next(backbone.parameters()).dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
