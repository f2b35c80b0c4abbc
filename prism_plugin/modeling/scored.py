"""What `score` found, token by token, with what a person needs to read it: names and places in the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prism_plugin.errors import ConfigurationError
from prism_plugin.tokenizing import encode
from prism_plugin.types import PerToken, TokenIds, TokenMask

Offsets = list[tuple[int, int] | None]


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens with their quality. Everything has an entry for each position, padding included.

    Attributes:
        input_ids: What was rated.
        attention_mask: True where there is a token, False at padding.
        quality: Probability that the token is right, in [0, 1]; 0 at padding.
        tokens: For each row, the tokens' names in the vocabulary; None where the model has no tokenizer.
        offsets: For each row and token, the first of its characters in the text and the one after the last; None for a token
            that the tokenizer added, and at padding. None altogether where ids were rated, or the tokenizer does not tell (one
            that is written in Python).
    """

    input_ids: TokenIds
    attention_mask: TokenMask
    quality: PerToken
    tokens: list[list[str]] | None
    offsets: list[Offsets] | None


def with_tokens(
    tokenizer: Any, texts: Sequence[str] | None, input_ids: TokenIds, attention_mask: TokenMask | None, quality: PerToken
) -> ScoredTokens:
    """Add names and places to what was rated.

    Args:
        tokenizer: The model's, if it has one.
        texts: What the rows are made of; None where ids were given.
        input_ids: The rows.
        attention_mask: The rows' own tokens; None: all are.
        quality: As `score` gives it.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    tokens = None if tokenizer is None else [tokenizer.convert_ids_to_tokens(row) for row in input_ids.tolist()]
    offsets = None
    if texts is not None and getattr(tokenizer, "is_fast", False):
        offsets = [_offsets(tokenizer, text, own.tolist()) for text, own in zip(texts, attention_mask, strict=True)]
    return ScoredTokens(input_ids, attention_mask, quality, tokens, offsets)


def _offsets(tokenizer: Any, text: str, own: list[bool]) -> Offsets:
    asked = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    encoded = encode(tokenizer, text, ConfigurationError, **asked)
    of_tokens = iter(zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True))
    found: Offsets = []
    for is_token in own:
        (first, after), added = next(of_tokens) if is_token else ((0, 0), 1)
        # one that stands in the text may be marked as if it were added, but it has a place
        found.append(None if added and first == after else (first, after))
    return found
