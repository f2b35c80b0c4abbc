"""Sudoku, 9x9: PRISM's own first benchmark (arXiv 2510.01384, section 5.1).

A grid is 81 tokens in row-major order; token id `d` is the digit `d` and id 0, the mask, is a blank cell, so a puzzle file
needs no tokenizer to be read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from prism_plugin.backbones import vocab_size_of
from prism_plugin.data import read_lines
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.evaluation.tasks.sudoku_grids import CELLS_OF_UNIT, NUM_CELLS, SIDE, GridSymmetry, is_consistent, solve
from prism_plugin.evaluation.tasks.task import TASKS, Figure, Heading
from prism_plugin.modeling import PrismModel
from prism_plugin.types import TokenIds, TokenMask

MASK_TOKEN_ID = 0
PAD_TOKEN_ID = 10
VOCAB_SIZE = 11


@dataclass(frozen=True)
class Puzzle:
    """A row of the task: clues and blanks, [81]; a solution, [81]; and whether it is the only one."""

    cells: TokenIds
    solution: TokenIds
    unique: bool

    @classmethod
    def solve(cls, cells: TokenIds) -> "Puzzle":
        """Solve a puzzle by search.

        Raises:
            DataFormatError: If it has no solution.
        """
        found = solve(cells.tolist())
        if not found:
            raise DataFormatError(f"a puzzle must have a solution, found none for {format_grid(cells)}.")
        return cls(cells, torch.tensor(found[0]), unique=len(found) == 1)


@TASKS.register("sudoku")
@dataclass(frozen=True)
class Sudoku:
    """Fill the blanks of puzzles so that every row, column and box holds each digit once."""

    rows_are: ClassVar[str] = "puzzles"
    data_is: ClassVar[str] = "puzzles, one a line, 81 characters, 0 or . for blank"
    figures: ClassVar[Mapping[str, Heading]] = {"success": Heading("solved"), "cell_accuracy": Heading("cells right")}
    presets: ClassVar[tuple[str, ...]] = (
        "random", "remdm-conf", "prism", "confidence", "threshold", "prism-confidence", "prism-redraft",
    )  # fmt: skip

    def speaks(self, model: PrismModel) -> bool:
        """Whether a model's vocabulary and mask token are Sudoku's."""
        return (vocab_size_of(model.get_output_embeddings()), model.mask_token_id) == (VOCAB_SIZE, MASK_TOKEN_ID)

    def require_model(self, model: PrismModel) -> None:
        """Check that a model speaks Sudoku's tokens.

        Raises:
            ConfigurationError: If its vocabulary or its mask token is another.
        """
        if not self.speaks(model):
            raise ConfigurationError(
                f"The adapter must be of a Sudoku model, with {VOCAB_SIZE} tokens and mask token {MASK_TOKEN_ID}, found "
                f"{vocab_size_of(model.get_output_embeddings())} tokens and mask token {model.mask_token_id}; use one such as "
                "adapters/sudoku-9x9/weights."
            )

    def rows(self, path: str | Path, limit: int | None = None) -> list[Puzzle]:
        """Read a file's puzzles and solve them.

        Raises:
            DataFormatError: If the file cannot be read, or holds something else; or a puzzle has no solution.
        """
        return [Puzzle.solve(cells) for cells in read_puzzles(path)[:limit]]

    def canvas(self, rows: Sequence[Puzzle], model: PrismModel) -> tuple[TokenIds, None]:
        """The puzzles, blanks as masks; all of one length."""
        return torch.stack([row.cells for row in rows]), None

    def judge(self, rows: Sequence[Puzzle], sequences: TokenIds, model: PrismModel) -> dict[str, Figure]:
        """Say which puzzles are solved, and which blanks hold the solution's digit, where there is one solution only."""
        puzzles, solutions = (torch.stack(grids) for grids in zip(*((row.cells, row.solution) for row in rows), strict=True))
        judged = ~clue_mask(puzzles) & torch.tensor([row.unique for row in rows]).unsqueeze(-1)
        return {
            "success": Figure.of_rows(is_solved(sequences, puzzles)),
            "cell_accuracy": Figure(((sequences == solutions) & judged).sum(-1), judged.sum(-1)),
        }

    def known(self, rows: Sequence[Puzzle], model: PrismModel) -> list[dict[str, Any]]:
        """Write puzzles as raw rows of their solutions, in which the clues may not be masked.

        Raises:
            DataFormatError: If one has several, so that a right cell could count as wrong; names it.
        """
        for row in rows:
            if not row.unique:
                raise DataFormatError(
                    f"a puzzle must have one solution for its cells to be judged, found several for {format_grid(row.cells)}."
                )
        return [{"input_ids": row.solution.tolist(), "maskable": (~clue_mask(row.cells)).tolist()} for row in rows]

    def symmetry(self, count: int, seed: int) -> GridSymmetry:
        """Relabel digits, and exchange bands, stacks, lines, and rows for columns."""
        return GridSymmetry.draw(count, torch.Generator().manual_seed(seed))

    def layout(self, length: int) -> int | None:
        """Nine cells a line."""
        return SIDE if length == NUM_CELLS else None


def is_solved(grids: TokenIds, puzzles: TokenIds) -> torch.Tensor:
    """Say which grids solve their puzzle: digits 1-9, each once in every row, column and box, and every clue kept.

    Args:
        grids: Candidate solutions, [count, 81].
        puzzles: Clues, 0 for blank, [count, 81].

    Returns:
        Bool, [count].
    """
    keeps_clues = ((puzzles == MASK_TOKEN_ID) | (grids == puzzles)).all(-1)
    complete = grids[:, CELLS_OF_UNIT].sort(-1).values == torch.arange(1, 10)
    return keeps_clues & complete.flatten(1).all(-1)


def clue_mask(puzzles: TokenIds) -> TokenMask:
    """Mark the given cells of each puzzle."""
    return puzzles != MASK_TOKEN_ID


def format_grid(cells: Iterable[int]) -> str:
    """Write 81 cells as one line, `.` for blank."""
    return "".join(str(digit) if digit else "." for digit in map(int, cells))


def read_puzzles(path: str | Path) -> TokenIds:
    """Read a file of puzzles: one a line, 81 characters, digits 1-9 for clues and `0` or `.` for blanks.

    Raises:
        DataFormatError: If the file cannot be read or holds no puzzle; or a line is not one, contradicts itself or has no
            blank, which is then named.
    """
    puzzles: list[list[int]] = []
    for number, line in enumerate(read_lines(path), start=1):
        text = line.strip()
        if not text:
            continue
        if len(text) != NUM_CELLS or not set(text) <= set("0123456789."):
            raise DataFormatError(
                f"{path}, line {number}: a puzzle is 81 characters of 1-9 and 0 or . for blank, found {text[:90]!r}."
            )
        cells = [0 if character == "." else int(character) for character in text]
        if not is_consistent(cells):
            raise DataFormatError(f"{path}, line {number}: the clues contradict each other; two equal digits meet in a unit.")
        if 0 not in cells:
            raise DataFormatError(
                f"{path}, line {number}: a puzzle must have a blank cell to fill, found none; remove the line."
            )
        puzzles.append(cells)
    if not puzzles:
        raise DataFormatError(f"{path} holds no puzzle; write one a line, 81 characters of 1-9 and 0 or . for blank.")
    return torch.tensor(puzzles, dtype=torch.long)
