"""Sudoku grids, 81 digits in row-major order, 0 for blank: a seeded solver, symmetries, puzzles with one solution."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prism_plugin.types import TokenIds

SIDE = 9
NUM_CELLS = SIDE * SIDE

_ALL_DIGITS = (1 << SIDE) - 1
_UNITS_OF_CELL = [(cell // 9, cell % 9, cell // 27 * 3 + cell % 9 // 3) for cell in range(NUM_CELLS)]
CELLS_OF_UNIT = torch.tensor(
    [[cell for cell in range(NUM_CELLS) if _UNITS_OF_CELL[cell][kind] == unit] for kind in range(3) for unit in range(9)]
)


class _Search:
    """Depth-first search that always fills the blank with the fewest candidates; used digits are bit masks per unit.

    Without `rng` it also places the digit with the fewest places in a unit, where that is fewer: by candidates alone, a puzzle
    without a solution can take hours to be known as one. With `rng` it does not, so that grids of a seed stay what they are.
    """

    def __init__(self, cells: Sequence[int]) -> None:
        self.cells = list(cells)
        self.rows, self.columns, self.boxes = [0] * 9, [0] * 9, [0] * 9
        self.consistent = True
        for cell, digit in enumerate(self.cells):
            if digit:
                self.consistent &= self._used(cell) >> (digit - 1) & 1 == 0
                self._flip(cell, 1 << (digit - 1))
        self.blanks = [cell for cell, digit in enumerate(self.cells) if not digit]

    def _used(self, cell: int) -> int:
        row, column, box = _UNITS_OF_CELL[cell]
        return self.rows[row] | self.columns[column] | self.boxes[box]

    def _flip(self, cell: int, bit: int) -> None:
        row, column, box = _UNITS_OF_CELL[cell]
        self.rows[row] ^= bit
        self.columns[column] ^= bit
        self.boxes[box] ^= bit

    def run(self, limit: int, rng: random.Random | None = None) -> list[list[int]]:
        found: list[list[int]] = []
        if self.consistent:
            self._fill(found, limit, rng)
        return found

    def _fill(self, found: list[list[int]], limit: int, rng: random.Random | None) -> None:
        if not self.blanks:
            found.append(list(self.cells))
            return
        for cell, bit in self._choices(rng):
            index = self.blanks.index(cell)
            del self.blanks[index]
            self.cells[cell] = bit.bit_length()
            self._flip(cell, bit)
            self._fill(found, limit, rng)
            self._flip(cell, bit)
            self.cells[cell] = 0
            self.blanks.insert(index, cell)
            if len(found) >= limit:
                break

    def _choices(self, rng: random.Random | None) -> list[tuple[int, int]]:
        """The ways to go on, one of which holds in every solution: a cell and the bit of its digit."""
        best, fewest, options = 0, 10, 0
        for cell in self.blanks:
            free = _ALL_DIGITS & ~self._used(cell)
            count = free.bit_count()
            if count < fewest:
                best, fewest, options = cell, count, free
                if count <= 1:
                    break
        if fewest > 1 and rng is None:
            places = self._places(fewest)
            if places is not None:
                return places
        bits = [1 << digit for digit in range(9) if options >> digit & 1]
        if rng is not None:
            rng.shuffle(bits)
        return [(best, bit) for bit in bits]

    def _places(self, fewest: int) -> list[tuple[int, int]] | None:
        """The places of a digit that has fewer than `fewest` in a unit, and at most two; None if there is none such."""
        one, two, three = ([0] * 27 for _ in range(3))  # digits with at least so many places, per unit
        for cell in self.blanks:
            free = _ALL_DIGITS & ~self._used(cell)
            for unit in _numbered(cell):
                three[unit] |= two[unit] & free
                two[unit] |= one[unit] & free
                one[unit] |= free
        missing = [_ALL_DIGITS & ~used for used in (*self.rows, *self.columns, *self.boxes)]
        for more in (one, two, three)[:fewest]:  # no place at all first, then one, then two
            for unit in range(27):
                scarce = missing[unit] & ~more[unit]
                if scarce:
                    bit = scarce & -scarce
                    return [(cell, bit) for cell in self.blanks if unit in _numbered(cell) and not self._used(cell) & bit]
        return None


def _numbered(cell: int) -> tuple[int, int, int]:
    row, column, box = _UNITS_OF_CELL[cell]
    return row, SIDE + column, 2 * SIDE + box


def solve(cells: Sequence[int], limit: int = 2) -> list[list[int]]:
    """Find up to `limit` solutions of a puzzle (81 digits, 0 for blank); none when it contradicts itself."""
    return _Search(cells).run(limit)


def is_consistent(cells: Sequence[int]) -> bool:
    """Whether no two equal digits meet in a row, column or box."""
    return _Search(cells).consistent


def complete_grids(count: int, seed: int) -> TokenIds:
    """Make `count` complete grids, [count, 81], by randomised search. Grid `i` depends on (`seed`, `i`) alone."""
    grids = [_Search([0] * NUM_CELLS).run(1, random.Random(f"{seed}/{index}"))[0] for index in range(count)]
    return torch.tensor(grids, dtype=torch.long).reshape(count, NUM_CELLS)


@dataclass(frozen=True)
class GridSymmetry:
    """A random element of the Sudoku symmetry group for each of some grids.

    Attributes:
        cells: Where each cell comes from, [count, 81].
        digits: What becomes of the digits 1 to 9, [count, 9].
    """

    cells: TokenIds
    digits: TokenIds

    @classmethod
    def draw(cls, count: int, generator: torch.Generator | None = None) -> "GridSymmetry":
        """Draw one for each grid: relabelling of the digits, order of the bands and of the rows within a band, the same for
        columns, and transposition.

        Args:
            count: Number of grids.
            generator: Source of randomness on the CPU; the global one when None.
        """

        def orders(*shape: int) -> torch.Tensor:
            return torch.rand(count, *shape, generator=generator).argsort(-1)

        def lines() -> torch.Tensor:  # [count, 9]: bands permuted, then the three lines inside each
            return (orders(3).unsqueeze(-1) * 3 + orders(3, 3)).reshape(count, SIDE)

        digits = orders(SIDE) + 1
        cells = (lines().unsqueeze(2) * SIDE + lines().unsqueeze(1)).reshape(count, NUM_CELLS)
        transposed = (cells % SIDE) * SIDE + cells // SIDE
        flip = torch.rand(count, 1, generator=generator) < 0.5
        return cls(torch.where(flip, transposed, cells), digits)

    def move_places(self, values: torch.Tensor) -> torch.Tensor:
        """Move a value of each cell with its cell, [count, 81]."""
        return values.gather(1, self.cells)

    def move_tokens(self, ids: TokenIds) -> TokenIds:
        """Move grids, [count, 81]. Blanks (0) stay blank, so puzzles can be moved as well as complete grids; an id that is no
        digit, which a language model may have written, is moved as it is.
        """
        moved = self.move_places(ids)
        return torch.where((moved > 0) & (moved <= SIDE), self.digits.gather(1, (moved - 1).clamp(0, SIDE - 1)), moved)


def augment(grids: TokenIds, generator: torch.Generator | None = None) -> TokenIds:
    """Move each grid by a random symmetry of its own.

    Args:
        grids: Cells, ids >= 0, [count, 81].
        generator: Source of randomness on the CPU; the global one when None.
    """
    return GridSymmetry.draw(len(grids), generator).move_tokens(grids)


def make_puzzles(count: int, seed: int, num_blanks: int = 51) -> tuple[TokenIds, TokenIds]:
    """Make puzzles with exactly one solution.

    Cells are blanked in random order, each only if the solution stays unique, until `num_blanks` are blank; a grid on
    which that gets stuck is dropped.

    Returns:
        Puzzles and their solutions, both [count, 81]; puzzle `i` depends on (`seed`, `i`) alone.
    """
    pairs = [_make_puzzle(random.Random(f"puzzle/{seed}/{index}"), num_blanks) for index in range(count)]
    both = torch.tensor(pairs, dtype=torch.long).reshape(count, 2, NUM_CELLS)
    return both[:, 0], both[:, 1]


def _make_puzzle(rng: random.Random, num_blanks: int) -> tuple[list[int], list[int]]:
    while True:
        solution = _Search([0] * NUM_CELLS).run(1, rng)[0]
        puzzle, blanks = list(solution), 0
        for cell in rng.sample(range(NUM_CELLS), NUM_CELLS):
            if blanks == num_blanks:
                return puzzle, solution
            digit, puzzle[cell] = puzzle[cell], 0
            if len(solve(puzzle)) == 1:
                blanks += 1
            else:
                puzzle[cell] = digit
        if blanks == num_blanks:
            return puzzle, solution
