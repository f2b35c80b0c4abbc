"""Which ids of a vocabulary are never written. An exported sampler, which has no tokenizer, is told by its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prism_plugin.core.forbidding import Runs


@dataclass(frozen=True)
class SpecialTokens:
    """What a sampler asks of a tokenizer, for where there is none.

    Attributes:
        pad_token_id: Id of the padding token.
        eos_token_id: Id of the token that ends a text.
        unknown: Ids of the vocabulary that are never written, as runs: the first, and one past the last of each.
    """

    pad_token_id: int | None
    eos_token_id: int | None
    unknown: Runs


def unknown_ids(tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    """The ids below `vocab_size` that a tokenizer does not have, in order; none where there is no tokenizer."""
    if tokenizer is None:
        return ()
    if isinstance(tokenizer, SpecialTokens):
        return tuple(one for start, stop in tokenizer.unknown for one in range(start, stop))
    known = {*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder}
    return tuple(one for one in range(vocab_size) if one not in known)


def edit_ids(names: Sequence[str], config: Any, tokenizer: Any) -> set[int]:
    """Ids of the tokens that a family's `edit_tokens` name, as far as this checkpoint has them.

    Args:
        names: Attributes of config or tokenizer that hold an id, or tokens.
        config: The backbone's.
        tokenizer: None: there is none.
    """
    vocabulary = {} if tokenizer is None or isinstance(tokenizer, SpecialTokens) else tokenizer.get_vocab()
    found = {getattr(source, name, None) for name in names for source in (config, tokenizer)}
    return {one for one in found | {vocabulary.get(name) for name in names} if isinstance(one, int)}
