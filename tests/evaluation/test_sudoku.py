"""The Sudoku task: what it generates is what it says, and the checker lets nothing pass."""

import pytest
import torch

from prism_plugin.errors import DataFormatError
from prism_plugin.evaluation.tasks import sudoku, sudoku_grids

BLANK = torch.zeros(1, 81, dtype=torch.long)
SHIFTS = [0, 3, 6, 1, 4, 7, 2, 5, 8]
GRID = torch.tensor([[(column + shift) % 9 + 1 for shift in SHIFTS for column in range(9)]])


def literal_check(grid, puzzle):
    """Rows, columns and boxes one by one, as the rules of the game are written."""
    cells = [grid[row * 9 : row * 9 + 9] for row in range(9)]
    units = [set(row) for row in cells] + [{row[column] for row in cells} for column in range(9)]
    units += [{cells[r][c] for r in range(i, i + 3) for c in range(j, j + 3)} for i in (0, 3, 6) for j in (0, 3, 6)]
    return all(unit == set(range(1, 10)) for unit in units) and all(p in (0, g) for p, g in zip(puzzle, grid, strict=True))


def test_a_pattern_grid_is_solved_and_every_single_change_is_not():
    assert sudoku.is_solved(GRID, BLANK).all()
    for cell in range(81):
        for digit in range(11):
            changed = GRID.clone()
            changed[0, cell] = digit
            solved = bool(sudoku.is_solved(changed, BLANK))
            assert solved == literal_check(changed[0].tolist(), [0] * 81) == (digit == GRID[0, cell])


def test_a_solved_grid_that_changes_a_clue_does_not_count():
    swapped = torch.tensor([0, 2, 1, *range(3, 11)])[GRID]
    assert sudoku.is_solved(swapped, BLANK).all()
    assert not sudoku.is_solved(swapped, GRID).any()


def test_generated_grids_are_complete_depend_on_the_seed_and_not_on_the_count():
    grids = sudoku_grids.complete_grids(5, seed=3)
    assert sudoku.is_solved(grids, BLANK.expand(5, -1)).all()
    assert torch.equal(grids[:2], sudoku_grids.complete_grids(2, seed=3))
    assert len({tuple(grid.tolist()) for grid in torch.cat((grids, sudoku_grids.complete_grids(5, seed=4)))}) == 10


def test_symmetries_keep_grids_complete_and_puzzles_blank_where_they_were():
    grids = GRID.repeat(200, 1)
    moved = sudoku_grids.augment(grids, torch.Generator().manual_seed(0))
    assert sudoku.is_solved(moved, BLANK.expand(200, -1)).all()
    assert len({tuple(grid.tolist()) for grid in moved}) == 200
    puzzles, _ = sudoku_grids.make_puzzles(3, seed=0)
    assert ((sudoku_grids.augment(puzzles) == 0).sum(-1) == 51).all()
    foreign = torch.where(puzzles == 0, 10, puzzles)  # a language model may write a token that is no digit
    assert ((sudoku_grids.augment(foreign) == 10).sum(-1) == 51).all()


def test_puzzles_have_51_blanks_one_solution_and_keep_it():
    puzzles, solutions = sudoku_grids.make_puzzles(4, seed=0)
    assert ((puzzles == 0).sum(-1) == 51).all()
    assert [sudoku_grids.solve(puzzle.tolist()) for puzzle in puzzles] == [[solution.tolist()] for solution in solutions]
    assert sudoku.is_solved(solutions, puzzles).all()


def test_the_solver_counts_solutions():
    two_ways = GRID[0].tolist()
    for cell, digit in enumerate(two_ways):  # swapping two digits everywhere gives a second solution
        two_ways[cell] = 0 if digit in (1, 2) else digit
    assert len(sudoku_grids.solve(two_ways, limit=5)) == 2
    clash = [0] * 81
    clash[0] = clash[1] = 5
    assert sudoku_grids.solve(clash) == []


def test_a_puzzle_without_a_solution_is_soon_known():
    """By the fewest candidates of a cell alone this one, which norvig.com/sudoku.html found, takes longer than anyone waits."""
    impossible = ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4........."
    search = sudoku_grids._Search([0 if cell == "." else int(cell) for cell in impossible])
    visited, choices = [], search._choices

    def counted(rng):
        visited.append(1)
        assert len(visited) < 50_000
        return choices(rng)

    search._choices = counted
    assert search.run(2) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (sudoku.format_grid(GRID[0]), r"line 1: a puzzle must have a blank cell to fill, found none; remove the line"),
        ("." * 80, r"line 1: a puzzle is 81 characters of 1-9 and 0 or \. for blank, found"),
        ("." * 80 + "x", r"line 1: a puzzle is 81 characters"),
        ("." * 81 + "\n55" + "." * 79, r"line 2: the clues contradict each other"),
        ("\n\n", r"holds no puzzle; write one a line"),
    ],
)
def test_bad_puzzle_files_are_refused_with_the_line(tmp_path, text, message):
    file = tmp_path / "puzzles.txt"
    file.write_text(text)
    with pytest.raises(DataFormatError, match=message):
        sudoku.read_puzzles(file)


def test_puzzle_files_are_read_with_either_blank(tmp_path):
    file = tmp_path / "puzzles.txt"
    puzzles, _ = sudoku_grids.make_puzzles(2, seed=0)
    lines = [sudoku.format_grid(puzzle) for puzzle in puzzles]
    file.write_text(f"\ufeff{lines[0]}\n\n{lines[1].replace('.', '0')}\n")
    assert torch.equal(sudoku.read_puzzles(file), puzzles)
