"""What was written into the masks that follow a text, as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling.prompts import LaidPrompts
from prism_plugin.types import TokenIds


@dataclass(frozen=True)
class Written:
    """An answer.

    Attributes:
        given: What stood before it, as the tokenizer writes it.
        answer: What was written up to the tokenizer's EOS token, without special tokens.
        goes_on: No EOS token ends it, so that its last word may be cut off.
    """

    given: str
    answer: str
    goes_on: bool = False


def require_tokenizer(model: PrismModel, task: str) -> Any:
    """Give a model's tokenizer.

    Raises:
        ConfigurationError: If it has none.
    """
    if model.tokenizer is None:
        raise ConfigurationError(
            f"The task `{task}` is about texts, so the adapter needs a tokenizer, found none; save one with it "
            "(`attach_quality_head(..., tokenizer=...)`)."
        )
    return model.tokenizer


def read_written(model: PrismModel, laid: LaidPrompts, sequences: TokenIds, max_new_tokens: int) -> list[Written]:
    """Read the answers of filled canvases."""
    read, eos_token_id = [], model.tokenizer.eos_token_id
    for ids, start in zip(sequences.tolist(), laid.starts, strict=True):
        new = ids[start : start + max_new_tokens]
        ends = eos_token_id in new
        own = new[: new.index(eos_token_id)] if ends else new
        given, whole = (_text(model.tokenizer, part) for part in (ids[:start], ids[:start] + own))
        # tokens may look otherwise with others after them, as when a tokenizer writes "do n't" as "don't"
        border = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(given, whole, strict=False)))
        read.append(Written(given[:border], whole[border:], goes_on=not ends))
    return read


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)
