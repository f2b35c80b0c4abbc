"""Texts, through a model's tokenizer, to rows of token ids of one length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prism_plugin.backbones import pad_rows
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
