"""A small n-gram model of characters: how well an answer is written, by the measure of a text that people wrote."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

PerCharacter = Int[Tensor, " characters"]


@dataclass(frozen=True)
class _Grams:
    """The n-grams of one length that were seen, each by its key: number of its history, times the alphabet, plus character.

    The number of an n-gram is its place here; a history is an n-gram of the length below.
    """

    keys: Int[Tensor, " grams"]  # ascending
    counts: Int[Tensor, " grams"]
    total: Int[Tensor, " histories"]  # c(h)
    kinds: Int[Tensor, " histories"]  # T(h)


class CharacterModel:
    """The probability of a character after those before it, interpolated over all orders by Witten and Bell's rule.

    With c(h x) the count of character x after history h, c(h) their sum over x, T(h) the number of different characters that
    were seen after h, and h' the history without its first character:

        p(x | h) = (c(h x) + T(h) p(x | h')) / (c(h) + T(h))

    A history that was never seen leaves p(x | h'). Below the empty history all characters are equally likely: those that were
    seen, and one more, which stands for all others. So no probability is 0, and there is nothing to tune. Source: Chen and
    Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (P96-1041 of the ACL Anthology), Witten-Bell
    smoothing; the weight T / (c + T) is escape method C of the compressor PPM.

    Args:
        texts: What people wrote. Each is read by itself: no history reaches from one into another.
        order: Characters of the longest n-gram, >= 1; the history is one shorter.
    """

    def __init__(self, texts: Sequence[str], order: int) -> None:
        codes, place = _lay_out(texts)
        self._alphabet = codes.unique()
        ids, self._by_length = self._ids(codes), list[_Grams]()
        history, num_histories = torch.zeros_like(ids), 1
        for length in range(1, order + 1):
            whole = place >= length - 1  # an n-gram that ends here does not begin before its text
            if not whole.any():
                break  # no text is that long
            keys, number, counts = self._keys(history, ids)[whole].unique(return_inverse=True, return_counts=True)
            total = torch.zeros(num_histories, dtype=torch.int64).index_add(0, self._history_of(keys), counts)
            kinds = self._history_of(keys).bincount(minlength=num_histories)
            self._by_length.append(_Grams(keys, counts, total, kinds))
            history, num_histories = _of_previous(torch.zeros_like(ids).masked_scatter(whole, number)), len(keys)

    def bits(self, answers: Sequence[tuple[str, str]]) -> Float[Tensor, " answers"]:
        """Bits that each answer costs: -log2 of its probability after what is given, the sum over its characters.

        Args:
            answers: What is given, and what follows it.
        """
        codes, place = _lay_out([given + text for given, text in answers])
        ids = self._ids(codes)
        found = torch.full(ids.shape, 1 / self._size, dtype=torch.float64)
        history, seen = torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool)
        for length, grams in enumerate(self._by_length, start=1):
            keys = self._keys(history, ids)
            number = torch.searchsorted(grams.keys, keys).clamp(max=len(grams.keys) - 1)
            known = seen & (grams.keys[number] == keys)
            count, total, kinds = torch.where(known, grams.counts[number], 0), grams.total[history], grams.kinds[history]
            # what was seen at the end of a text only was followed by nothing
            found = torch.where(seen & (total > 0), (count + kinds * found) / (total + kinds).clamp(min=1), found)
            history, seen = _of_previous(torch.where(known, number, 0)), _of_previous(known) & (place >= length)
        row = torch.arange(len(answers)).repeat_interleave(torch.tensor([len(given) + len(text) for given, text in answers]))
        answered = place >= torch.tensor([len(given) for given, _ in answers])[row]
        costs = torch.where(answered, -found.log2(), 0.0)
        return torch.zeros(len(answers), dtype=torch.float64).index_add(0, row, costs)

    @property
    def _size(self) -> int:
        return len(self._alphabet) + 1

    def _ids(self, codes: PerCharacter) -> PerCharacter:
        """Places in the alphabet; the one behind it stands for all that is not there."""
        found = torch.searchsorted(self._alphabet, codes)
        return torch.where(self._alphabet[found.clamp(max=len(self._alphabet) - 1)] == codes, found, len(self._alphabet))

    def _keys(self, history: PerCharacter, ids: PerCharacter) -> PerCharacter:
        return history * self._size + ids

    def _history_of(self, keys: Int[Tensor, " grams"]) -> Int[Tensor, " grams"]:
        return keys // self._size


def _lay_out(texts: Sequence[str]) -> tuple[PerCharacter, PerCharacter]:
    """All characters in a row, as numbers, and the place of each in its text."""
    written = bytearray("".join(texts).encode("utf-32-le", "surrogatepass"))
    codes = torch.frombuffer(written, dtype=torch.int32).long() if written else torch.zeros(0, dtype=torch.int64)
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return codes, torch.arange(len(codes)) - starts


def _of_previous(values: Tensor) -> Tensor:
    """For each character what the one before it has; for the first, what the last has, which nobody reads."""
    return values.roll(1)
