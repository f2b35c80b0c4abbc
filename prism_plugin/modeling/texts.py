"""Texts, through a model's tokenizer, to rows of token ids of one length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from prism_plugin.backbones import max_row_length, pad_rows
from prism_plugin.errors import ConfigurationError
from prism_plugin.types import TokenIds, TokenMask

if TYPE_CHECKING:
    from prism_plugin.modeling.model import PrismModel


def pad_token_id(model: "PrismModel") -> int:
    """The id for padding: the tokenizer's, else the config's, else 0."""
    for owner in (model.tokenizer, model.config):
        if getattr(owner, "pad_token_id", None) is not None:
            return owner.pad_token_id
    return 0  # padding is not attended to, so any id will do


def encode_texts(model: "PrismModel", texts: Sequence[str]) -> tuple[TokenIds, TokenMask]:
    """Tokenise texts and pad them on the tokenizer's side, whether or not it has a padding token.

    Returns:
        Token ids, and which of them are the texts' own.

    Raises:
        ConfigurationError: If the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ConfigurationError(
            "Scoring texts needs a tokenizer, but the model has none; attach with `tokenizer=...`, or pass token ids."
        )
    return pad_rows(model.tokenizer(list(texts))["input_ids"], pad_token_id(model), side=model.tokenizer.padding_side)


def check_ids(model: "PrismModel", input_ids: TokenIds) -> None:
    """Refuse what the model's tables of tokens and positions have no row for.

    Raises:
        ConfigurationError: If the ids are not a matrix of integers in the vocabulary, or the rows are too long.
    """
    if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ConfigurationError(
            f"Token ids must be integers of shape [batch, length], got {input_ids.dtype} of shape {list(input_ids.shape)}."
        )
    vocabulary = model.config.get_text_config().vocab_size
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
