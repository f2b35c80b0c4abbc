"""Token ids as callers give them: a tensor, or what a tokenizer returned. Read here alone."""

from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from prism_plugin.errors import Refuse
from prism_plugin.types import TokenIds, TokenMask

# What a tokenizer may tell about its tokens besides, and which changes nothing.
_TOLD_BESIDES = {"special_tokens_mask", "offset_mapping", "length"}


def read_ids(
    given: TokenIds | BatchEncoding, attention_mask: Tensor | None, refuse: Refuse
) -> tuple[TokenIds, TokenMask | None]:
    """Take token ids and their mask out of what a caller gave: two tensors, or what a tokenizer returned.

    Args:
        given: Token ids, [batch, length]; or a `BatchEncoding` with tensors, which brings its mask.
        attention_mask: 1 for the rows' own tokens, 0 for padding; None without padding, or where `given` brings it.
        refuse: Makes the error of a sentence.

    Returns:
        The ids, and a bool mask on their device; None if none was given.
    """
    if isinstance(given, BatchEncoding):
        if attention_mask is not None:
            raise refuse("the BatchEncoding brings its own `attention_mask`; leave the other out.")
        given, attention_mask = _taken_apart(given, refuse)
    if not isinstance(given, Tensor):
        raise refuse(
            "`input_ids` must be a tensor of token ids, [batch, length], or what a tokenizer gives with "
            f'`return_tensors="pt"`, got {type(given).__name__}; make a tensor of it.'
        )
    if given.dim() != 2 or given.shape[0] == 0 or given.is_floating_point() or given.dtype == torch.bool:
        raise refuse(
            f"`input_ids` must be integer ids of shape [batch, length] with at least one row, got {_describe(given)}; "
            "a single row needs a batch dimension (`input_ids.unsqueeze(0)`)."
        )
    if attention_mask is None:
        return given, None
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != given.shape:
        found = _describe(attention_mask) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise refuse(f"`attention_mask` must be a tensor with the shape of `input_ids`, {list(given.shape)}, got {found}.")
    if not ((attention_mask == 0) | (attention_mask == 1)).all():
        raise refuse("`attention_mask` must hold 1 for the row's own tokens and 0 for padding, found other values.")
    return given, attention_mask.to(device=given.device, dtype=torch.bool)


def _taken_apart(encoding: BatchEncoding, refuse: Refuse) -> tuple[Any, Any]:
    kinds = encoding.get("token_type_ids")
    unread = sorted(set(encoding) - {"input_ids", "attention_mask", "token_type_ids"} - _TOLD_BESIDES)
    if unread or "input_ids" not in encoding:
        found = f"nothing reads its {', '.join(map(repr, unread))}" if unread else "there is none"
        raise refuse(f"a BatchEncoding must hold `input_ids`, and besides only what goes with them, but {found}.")
    if not isinstance(encoding["input_ids"], Tensor):
        raise refuse('a BatchEncoding must hold tensors; call the tokenizer with `padding=True, return_tensors="pt"`.')
    if kinds is not None and kinds.any():
        raise refuse("`token_type_ids` must be zeros, which is how the model is called; tokenise each text by itself.")
    return encoding["input_ids"], encoding.get("attention_mask")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
