"""Texts as callers give them: what they are, and as rows of token ids of one length. Read here alone."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import BatchEncoding

from prism_plugin.backbones import max_row_length, pad_rows, vocab_size_of
from prism_plugin.errors import ConfigurationError, Refuse
from prism_plugin.modeling.given_ids import read_ids
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.tokenizing import encode
from prism_plugin.types import TokenIds, TokenMask


def pad_token_id(model: HeadedBackbone) -> int:
    """The id for padding: the tokenizer's, else the config's, else any that is not the mask's, which would ask to be filled."""
    known = (getattr(owner, "pad_token_id", None) for owner in (model.tokenizer, model.config))
    return next((pad for pad in known if pad not in (None, model.mask_token_id)), int(model.mask_token_id == 0))


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


def rows_to_score(
    model: HeadedBackbone, given: Sequence[str] | TokenIds | BatchEncoding, attention_mask: Tensor | None
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
    if mask is not None:
        input_ids = input_ids.where(mask, pad_token_id(model))  # padding may hold anything
    _check_ids(model, input_ids)
    return input_ids, mask


def _encode_texts(model: HeadedBackbone, texts: Sequence[Any]) -> tuple[TokenIds, TokenMask]:
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


def _check_ids(model: HeadedBackbone, input_ids: TokenIds) -> None:
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
