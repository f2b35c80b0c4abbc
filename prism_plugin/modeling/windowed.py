"""Calls that compute a window of the canvas against kept keys and values."""

from typing import Any

import torch
from torch import Tensor

from prism_plugin.backbones.call import attention_blocks, call_arguments
from prism_plugin.backbones.key_values import Window
from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.types import TokenIds, TokenMask


def windowed_arguments(
    spec: BackboneSpec, window: Window, input_ids: TokenIds, attention_mask: TokenMask | None, first_position: int | None
) -> tuple[dict[str, Any], Tensor | None]:
    """What a backbone is called with where a window is computed, and who may see whom.

    Args:
        spec: The backbone's family.
        window: What is computed.
        input_ids: The whole canvas, its rows beginning in column 0.
        attention_mask: True (or 1) where there is a token; None: everywhere.
        first_position: Of a row's first token, where the forward takes `position_ids`; None: it does not.

    Returns:
        Arguments of the forward, without a mask, since attention is ours; and which positions each of the window may look at,
        [batch, window or 1, length], None: all.
    """
    arguments = call_arguments(spec, window.gathered(input_ids), None)
    arguments.pop(spec.mask_argument, None)
    if window.columns is not None and first_position is not None:
        arguments["position_ids"] = window.columns + first_position
    present = None if attention_mask is None or spec.attention_mask == "none" else attention_mask.bool()
    if spec.attention_block_length is None:
        return arguments, None if present is None else present.unsqueeze(1)
    present = torch.ones_like(input_ids).bool() if present is None else present
    block = attention_blocks(present, spec.attention_block_length)
    return arguments, present.unsqueeze(1) & (window.gathered(block).unsqueeze(-1) >= block.unsqueeze(1))
