"""Texts, or token ids, as callers give them: what they are, and as rows of token ids of one length. Read here alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from prism_plugin.backbones import max_row_length, pad_rows, vocab_size_of
from prism_plugin.errors import ConfigurationError
from prism_plugin.tokenizing import Refuse, encode
from prism_plugin.types import TokenIds, TokenMask

if TYPE_CHECKING:
    from prism_plugin.modeling.model import PrismModel

# What a tokenizer may tell about its tokens besides, and which changes nothing.
_TOLD_BESIDES = {"special_tokens_mask", "offset_mapping", "length"}


def pad_token_id(model: "PrismModel") -> int:
    """The id for padding: the tokenizer's, else the config's, else 0."""
    for owner in (model.tokenizer, model.config):
        if getattr(owner, "pad_token_id", None) is not None:
            return owner.pad_token_id
    return 0  # padding is not attended to, so any id will do


def require_texts(given: Any, name: str, wanted: str, refuse: Refuse) -> None:
    """Check that something is a list, as texts and chats are given; what its entries are is for the caller to check.

    Args:
        given: What was given.
        name: What it is called.
        wanted: What its entries are, in words.
        refuse: Makes the error of a sentence.
    """
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not len(given):
        found = repr(given)[:60] if isinstance(given, Sequence) else type(given).__name__
        raise refuse(f"`{name}` must be a list with at least one {wanted}, got {found}.")


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


def rows_to_score(
    model: "PrismModel", given: Sequence[str] | TokenIds | BatchEncoding, attention_mask: Tensor | None
) -> tuple[TokenIds, TokenMask | None]:
    """Read texts or token ids, and refuse what the model's tables of tokens and positions have no row for.

    Returns:
        Token ids, and which of them are the rows' own; None where all are.

    Raises:
        ConfigurationError: If they are neither, cannot be read, are outside the vocabulary or too long.
    """
    if isinstance(given, Tensor | BatchEncoding):
        input_ids, mask = read_ids(given, attention_mask, ConfigurationError)
    else:
        require_texts(given, "texts_or_ids", "text, or a tensor of token ids", ConfigurationError)
        if attention_mask is not None:
            raise ConfigurationError("`attention_mask` goes with token ids; for texts the tokenizer makes it, so leave it out.")
        input_ids, mask = _encode_texts(model, given)
    _check_ids(model, input_ids)
    return input_ids, mask


def _encode_texts(model: "PrismModel", texts: Sequence[Any]) -> tuple[TokenIds, TokenMask]:
    """Tokenise texts and pad them on the tokenizer's side, whether or not it has a padding token."""
    if model.tokenizer is None:
        raise ConfigurationError(
            "Scoring texts needs a tokenizer, but the model has none; attach with `tokenizer=...`, or pass token ids."
        )
    rows = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigurationError(
                f"Text {number} must be text, found {type(text).__name__}; token ids are given as a tensor, [batch, length]."
            )
        rows.append(encode(model.tokenizer, text, ConfigurationError)["input_ids"])
        if not rows[-1]:
            raise ConfigurationError(f"Text {number} must give at least one token, found {text[:60]!r}.")
    return pad_rows(rows, pad_token_id(model), side=model.tokenizer.padding_side)


def _check_ids(model: "PrismModel", input_ids: TokenIds) -> None:
    vocabulary = vocab_size_of(model.get_output_embeddings())
    outside = input_ids[(input_ids < 0) | (input_ids >= vocabulary)]
    if len(outside):
        raise ConfigurationError(
            f"Token ids must lie in the model's vocabulary, 0 to {vocabulary - 1}, found {int(outside[0])}; use the tokenizer "
            "that belongs to the model."
        )
    limit = max_row_length(model.plain_backbone)
    if limit is not None and input_ids.shape[1] > limit:
        raise ConfigurationError(
            f"A row must have at most {limit} tokens, as many as {model.spec.model_type} has positions for, found "
            f"{input_ids.shape[1]}; score a shorter text."
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
