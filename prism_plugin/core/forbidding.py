"""Tokens that get no probability: some in every row of logits, some in rows of their own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_plugin.types import DrawnMask, Rows, RowUnits

Span = tuple[int, int]
# More spans than these are written by an index, which has to be copied to the device, and not one after the other.
_MOST_SPANS = 32


@dataclass(frozen=True)
class HeldBack:
    """Ids that get no probability in some rows: an end of text where it would be too early.

    Attributes:
        ids: The ids.
        rows: In which of the drawn rows.
    """

    ids: tuple[int, ...]
    rows: DrawnMask


@dataclass(frozen=True)
class Forbidden:
    """What gets no probability in the rows of a chunk, as spans of neighbouring ids: a padded vocabulary's end is one.

    Attributes:
        spans: First id and the one after the last, everywhere.
        held_back: The same, in the rows where `rows` is true.
        rows: Of the chunk; None where nothing is held back.
    """

    spans: tuple[Span, ...]
    held_back: tuple[Span, ...] = ()
    rows: DrawnMask | None = None

    @classmethod
    def of(cls, forbidden_ids: Iterable[int], held_back: HeldBack | None = None) -> "Forbidden":
        """The spans of some ids."""
        if held_back is None:
            return cls(spans_of(forbidden_ids))
        return cls(spans_of(forbidden_ids), spans_of(held_back.ids), held_back.rows)

    def at(self, here: slice) -> "Forbidden":
        """Those of some of the drawn rows."""
        return self if self.rows is None else Forbidden(self.spans, self.held_back, self.rows[here])

    def between(self, first: int, end: int) -> "Forbidden":
        """Those of some columns, counted from the first of them."""
        return Forbidden(_clipped(self.spans, first, end), _clipped(self.held_back, first, end), self.rows)

    def blocks(self, size: int, end: int) -> list[int]:
        """Numbers of the blocks of columns, below `end`, that hold such ids."""
        clipped = (*_clipped(self.spans, 0, end), *_clipped(self.held_back, 0, end))
        return sorted({number for first, last in clipped for number in range(first // size, -(-last // size))})

    def write(self, chunk: Rows) -> Rows:
        """Write -inf into rows of logits, in place, and give them back."""
        if len(self.spans) > _MOST_SPANS:
            ids = torch.tensor([one for first, end in self.spans for one in range(first, end)])
            chunk.index_fill_(-1, ids.to(chunk.device, non_blocking=True), float("-inf"))
        else:
            for first, end in self.spans:
                chunk[:, first:end] = float("-inf")
        for first, end in self.held_back:
            chunk[:, first:end].masked_fill_(self._rows(chunk), float("-inf"))
        return chunk

    def write_at(self, values: Rows, columns: RowUnits) -> Rows:
        """The same where each row has columns of its own."""
        for first, end in self.spans:
            values.masked_fill_((columns >= first) & (columns < end), float("-inf"))
        for first, end in self.held_back:
            within = (columns >= first) & (columns < end)
            values.masked_fill_(within & self._rows(values), float("-inf"))
        return values

    def _rows(self, chunk: Rows) -> Tensor:
        return self.rows.to(chunk.device).unsqueeze(-1)  # type: ignore[union-attr]  # there are rows where ids are held back


def spans_of(ids: Iterable[int]) -> tuple[Span, ...]:
    """Group ids into spans of neighbours: the first of each, and the one after the last."""
    return tuple(_joined(sorted(set(ids))))


def _joined(ids: list[int]) -> Iterator[Span]:
    first = 0
    for number, one in enumerate(ids):
        if number + 1 == len(ids) or ids[number + 1] != one + 1:
            yield ids[first], one + 1
            first = number + 1


def _clipped(spans: tuple[Span, ...], first: int, end: int) -> tuple[Span, ...]:
    return tuple((max(one, first) - first, min(last, end) - first) for one, last in spans if one < end and last > first)
