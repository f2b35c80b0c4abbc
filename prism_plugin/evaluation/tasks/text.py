"""Text, of any kind that people wrote: how much of what a model writes is words, how likely it is, and how rich."""

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from prism_plugin.data import read_lines
from prism_plugin.errors import ConfigurationError, DataFormatError, SamplingError
from prism_plugin.evaluation.tasks.character_model import CharacterModel
from prism_plugin.evaluation.tasks.task import TASKS, Figure, Heading
from prism_plugin.evaluation.tasks.text_rows import read_texts
from prism_plugin.evaluation.tasks.written import Written, read_written, require_tokenizer
from prism_plugin.modeling import PrismModel
from prism_plugin.modeling.texts import pad_token_id
from prism_plugin.sampling.prompts import LaidPrompts, lay_prompts
from prism_plugin.tokenizing import encode_apart
from prism_plugin.types import TokenIds, TokenMask

# Letters, with apostrophes inside. Numbers and signs are no words, neither good nor bad ones.
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


def plain(text: str) -> str:
    """A text as it is judged: without upper case, with one space where white space stood."""
    return re.sub(r"\s+", " ", text.casefold())


class Vocabulary:
    """Words that count as such.

    Args:
        texts: Where they stand, plain.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._words = frozenset(word for text in texts for word in _WORD.findall(text))
        self._in_order = sorted(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def holds(self, word: str, *, begun: bool = False) -> bool:
        """Whether a word is one; or, of one that was cut off, whether one begins so."""
        if not begun or word in self._words:
            return word in self._words
        place = bisect_left(self._in_order, word)
        return place < len(self._in_order) and self._in_order[place].startswith(word)


@dataclass(frozen=True)
class Reference:
    """What answers are judged by."""

    vocabulary: Vocabulary
    characters: CharacterModel


@dataclass(frozen=True)
class _Read:
    """An answer as it is judged: plain, with its words; among them one that what was given begins."""

    given: str
    answer: str
    words: list[str]
    last_is_cut: bool

    @classmethod
    def of(cls, one: Written) -> "_Read":
        given, whole = plain(one.given), plain(one.given + one.answer)
        found = [word for word in _WORD.finditer(whole) if word.end() > len(given)]
        last_is_cut = one.goes_on and bool(found) and found[-1].end() == len(whole)
        return cls(given, whole[len(given) :], [word[0] for word in found], last_is_cut)

    def judged(self) -> Iterator[tuple[str, bool]]:
        """Each word, and whether it was cut off."""
        for place, word in enumerate(self.words, start=1):
            yield word, self.last_is_cut and place == len(self.words)


@TASKS.register("text")
@dataclass(frozen=True)
class Text:
    """Write on, after the first characters of a text or from nothing.

    No figure says by itself that a text is good, and each can be had for nothing: `valid_words` by writing only the commonest
    words, `bits_per_character` by writing one likely text again and again, `word_entropy` by shuffling words, `distinct_words`
    by noise. What has one of them for nothing loses another, so they stand side by side and are read together: a model, or a
    preset, is better where valid words rise or bits fall at no loss of the other two. None combines the others, since a weight
    between them would be a choice of ours that could be gamed in turn. The first is `valid_words`, which noise cannot have; it
    must not be quoted, or tuned for, without entropy and distinct words beside it. `judged` gives the figures of any texts:
    those that people wrote are what to compare with, and not the best value that a figure can take.

    - `valid_words`: share of the answers' words that the reference or the word list holds. A word that the canvas cut off
      counts where one begins so. An answer without any word counts as one that is wrong.
    - `bits_per_character`: cross-entropy of the answer under an n-gram model of the reference (`CharacterModel`), after what
      was given; the perplexity of a character is 2 to its power. Lower is better. Only this one sees an order of words, and
      only where n-grams reach over them.
    - `word_entropy`: of the frequencies of words within an answer, in bits, mean over answers; 0 where one word is repeated, at
      most log2 of the number of words. It takes no notice of answers that are all alike.
    - `distinct_words`: different words of all answers over all their words (distinct-1, arXiv 1510.03055). It falls as answers
      get more, so compare as many rows, equally long.
    """

    rows_are: ClassVar[str] = "texts"
    data_is: ClassVar[str] = "texts: json, jsonl, csv or parquet with `text`, txt with one a line; with --piece, any text file"
    figures: ClassVar[Mapping[str, Heading]] = {
        "valid_words": Heading("valid", chooses=False),
        "bits_per_character": Heading("bits ↓", ".2f"),
        "word_entropy": Heading("entropy", ".2f"),
        "distinct_words": Heading("distinct"),
    }
    presets: ClassVar[tuple[str, ...]] = ("random", "remdm-conf", "prism", "confidence", "prism-confidence")

    reference: str | None = field(
        default=None,
        metadata={
            "file": True,
            "help": "needed: file of texts that people wrote, such as the training data; read as --data is",
        },
    )
    words: str | None = field(
        default=None,
        metadata={"file": True, "help": "word list, one a line, that says which words are valid (default: the reference's)"},
    )
    max_new_tokens: int = field(default=64, metadata={"help": "tokens to write"})
    prefix: int = field(default=0, metadata={"help": "characters of each text that are given"})
    piece: int | None = field(
        default=None, metadata={"help": "cut data and reference into pieces of at most this many characters, at white space"}
    )
    order: int = field(default=8, metadata={"help": "characters of the reference model's longest n-gram"})

    def __post_init__(self) -> None:
        for name, lowest in (("max_new_tokens", 1), ("prefix", 0), ("order", 1)):
            if getattr(self, name) < lowest:
                raise ConfigurationError(f"`{name}` must be at least {lowest}, got {getattr(self, name)}.")
        if self.piece is not None and self.piece < max(2, self.prefix + 1):
            raise ConfigurationError(
                f"`piece` must be at least 2 characters, and more than the `prefix` of {self.prefix}, got {self.piece}."
            )

    @cached_property
    def judge_by(self) -> Reference:
        """The reference, read once.

        Raises:
            ConfigurationError: If none was named.
            DataFormatError: If it cannot be read, or a word list holds no word.
        """
        if self.reference is None:
            raise ConfigurationError(
                "The task `text` judges by texts that people wrote; name a file of them, such as the training data, with "
                "`reference=FILE`."
            )
        texts = [plain(text) for text in read_texts(self.reference, self.piece)]
        listed = texts if self.words is None else [plain(line) for line in read_lines(self.words)]
        vocabulary = Vocabulary(listed)
        if not len(vocabulary):
            raise DataFormatError(f"{self.words or self.reference} holds no word to judge by; write one a line.")
        return Reference(vocabulary, CharacterModel(texts, self.order))

    def speaks(self, model: PrismModel) -> bool:
        """No tokens are this task's alone."""
        return False

    def require_model(self, model: PrismModel) -> None:
        """Check that a model has a tokenizer.

        Raises:
            ConfigurationError: If it has none.
        """
        require_tokenizer(model, "text")

    def rows(self, path: str | Path, limit: int | None = None) -> list[str]:
        """Read texts, and the reference.

        Raises:
            ConfigurationError: If no reference was named.
            DataFormatError: If a file cannot be read, or a text is no longer than its given beginning; with `piece`, pieces
                that are not are left out.
        """
        _ = self.judge_by
        texts = read_texts(path, self.piece)
        if self.piece is not None:
            texts = [text for text in texts if len(text) > self.prefix]
        for number, text in enumerate(texts[:limit]):
            if len(text) <= self.prefix:
                raise DataFormatError(
                    f"{path}, text {number}: a text must be longer than the `prefix` of {self.prefix} characters, found "
                    f"{len(text)}; shorten the prefix, leave the text out, or cut the file by `piece`."
                )
        if not texts:
            raise DataFormatError(f"{path} holds no text longer than the `prefix` of {self.prefix} characters; shorten it.")
        return texts[:limit]

    def canvas(self, rows: Sequence[str], model: PrismModel) -> tuple[TokenIds, TokenMask]:
        """What is given of the texts, each followed by as many masks, and what the tokenizer puts at a text's ends."""
        laid = self._lay(rows, model)
        return laid.input_ids, laid.attention_mask

    def judge(self, rows: Sequence[str], sequences: TokenIds, model: PrismModel) -> dict[str, Figure]:
        """Judge what was written by the reference."""
        return self.judged(read_written(model, self._lay(rows, model), sequences, self.max_new_tokens))

    def judged(self, answers: Sequence[Written]) -> dict[str, Figure]:
        """The figures of any texts: a model's answers, or, to compare with, what people wrote.

        Raises:
            ConfigurationError: If no reference was named.
            DataFormatError: If it cannot be read.
        """
        by, read = self.judge_by, [_Read.of(one) for one in answers]
        words = [one.words for one in read]
        valid = [sum(by.vocabulary.holds(word, begun=begun) for word, begun in one.judged()) for one in read]
        bits = by.characters.bits([(one.given, one.answer) for one in read])
        return {
            "valid_words": Figure(torch.tensor(valid), torch.tensor([max(len(own), 1) for own in words])),
            "bits_per_character": Figure(bits, torch.tensor([len(one.answer) for one in read])),
            "word_entropy": Figure.of_rows(torch.tensor([_entropy(own) for own in words], dtype=torch.float64)),
            "distinct_words": Figure.of_kinds(words),
        }

    def known(self, rows: Sequence[str], model: PrismModel | None = None) -> list[dict[str, Any]]:
        """Write texts as raw rows: whole, or with their given beginning as a prompt."""
        if not self.prefix:
            return [{"text": row} for row in rows]
        return [{"prompt": row[: self.prefix], "completion": row[self.prefix :]} for row in rows]

    def symmetry(self, count: int, seed: int) -> None:
        """None: what is right changes with any change of a text."""

    def layout(self, length: int) -> int | None:
        """A text."""
        return None

    def _lay(self, rows: Sequence[str], model: PrismModel) -> LaidPrompts:
        tokenizer = require_tokenizer(model, "text")
        if self.prefix:
            ids = {"mask_token_id": model.mask_token_id, "pad_token_id": pad_token_id(model)}
            return lay_prompts(tokenizer, [row[: self.prefix] for row in rows], max_new_tokens=self.max_new_tokens, **ids)
        # from nothing, between what the tokenizer puts at the ends of any text
        before, _, after = encode_apart(tokenizer, rows[0].strip()[:16], SamplingError)
        canvas = torch.tensor([[*before, *[model.mask_token_id] * self.max_new_tokens, *after]] * len(rows))
        return LaidPrompts(canvas, torch.ones_like(canvas, dtype=torch.bool), starts=[len(before)] * len(rows))


def _entropy(words: Sequence[str]) -> float:
    return -sum(count / len(words) * math.log2(count / len(words)) for count in Counter(words).values()) + 0.0
