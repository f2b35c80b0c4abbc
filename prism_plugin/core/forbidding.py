"""Tokens that get no probability: some in every row of logits, some in rows of their own."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from prism_plugin.types import DrawnMask, Rows, RowUnits

# Ids as runs of neighbours, [first, one past the last) each, in order: what pads a vocabulary is one.
Runs = tuple[tuple[int, int], ...]
# More runs than these are written by an index, which has to be copied to the device, and not one after the other.
MOST_RUNS = 32


@lru_cache(maxsize=64)
def runs_of(ids: tuple[int, ...]) -> Runs:
    """Group ids into runs of neighbours, first and one past the last of each."""
    runs: list[tuple[int, int]] = []
    for one in sorted(set(ids)):
        start = runs.pop()[0] if runs and runs[-1][1] == one else one
        runs.append((start, one + 1))
    return tuple(runs)


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
    """What gets no probability in the rows of a chunk, as runs of neighbouring ids.

    Attributes:
        everywhere: In all rows.
        held_back: In the rows where `rows` is true.
        rows: Of the chunk; None where nothing is held back.
    """

    everywhere: Runs
    held_back: Runs = ()
    rows: DrawnMask | None = None

    @classmethod
    def of(cls, forbidden_ids: tuple[int, ...], held_back: HeldBack | None = None) -> "Forbidden":
        """The runs of some ids."""
        if held_back is None:
            return cls(runs_of(forbidden_ids))
        return cls(runs_of(forbidden_ids), runs_of(held_back.ids), held_back.rows)

    def at(self, here: slice) -> "Forbidden":
        """Those of some of the drawn rows."""
        return self if self.rows is None else Forbidden(self.everywhere, self.held_back, self.rows[here])

    def between(self, first: int, end: int) -> "Forbidden":
        """Those of some columns, counted from the first of them."""
        return Forbidden(_clipped(self.everywhere, first, end), _clipped(self.held_back, first, end), self.rows)

    def blocks(self, size: int, end: int) -> list[int]:
        """Numbers of the blocks of columns, below `end`, that hold such ids."""
        clipped = (*_clipped(self.everywhere, 0, end), *_clipped(self.held_back, 0, end))
        return sorted({number for first, last in clipped for number in range(first // size, -(-last // size))})

    def write(self, chunk: Rows, value: float = float("-inf")) -> Rows:
        """Write -inf into rows of logits, or another value into what was made of them, in place, and give them back."""
        if len(self.everywhere) > MOST_RUNS:
            ids = torch.tensor([one for first, end in self.everywhere for one in range(first, end)])
            chunk.index_fill_(-1, ids.to(chunk.device, non_blocking=True), value)
        else:
            for first, end in self.everywhere:
                chunk[:, first:end] = value
        for first, end in self.held_back:
            chunk[:, first:end].masked_fill_(self._rows(chunk), value)
        return chunk

    def write_at(self, values: Rows, columns: RowUnits) -> Rows:
        """The same where each row has columns of its own."""
        for first, end in self.everywhere:
            values.masked_fill_((columns >= first) & (columns < end), float("-inf"))
        for first, end in self.held_back:
            within = (columns >= first) & (columns < end)
            values.masked_fill_(within & self._rows(values), float("-inf"))
        return values

    def _rows(self, chunk: Rows) -> Tensor:
        return self.rows.to(chunk.device).unsqueeze(-1)  # type: ignore[union-attr]  # there are rows where ids are held back


def _clipped(runs: Runs, first: int, end: int) -> Runs:
    return tuple((max(one, first) - first, min(last, end) - first) for one, last in runs if one < end and last > first)
