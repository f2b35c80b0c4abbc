"""Write the Sudoku data that the recipe, the demo and the tables use; the same files every time.

    python -m benchmarks.sudoku.prepare --output adapters/sudoku-9x9/data

`train.parquet` holds rows of `input_ids` (the solution) and `labels` (-100 at the clues, which are never masked);
`validation.txt` and `test.txt` hold puzzles, one a line. Every puzzle has 51 blanks and one solution.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset, Features, List, Value

from prism_plugin.evaluation.tasks import sudoku, sudoku_grids

TRAIN_PUZZLES, TRAIN_SEED = 10_000, 100
PUZZLE_FILES = {"validation.txt": (256, 101), "test.txt": (1_000, 102)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for name, (count, seed) in PUZZLE_FILES.items():
        puzzles, _ = sudoku_grids.make_puzzles(count, seed)
        (output / name).write_text("".join(sudoku.format_grid(puzzle) + "\n" for puzzle in puzzles), encoding="utf-8")
    puzzles, solutions = sudoku_grids.make_puzzles(TRAIN_PUZZLES, TRAIN_SEED)
    labels = torch.where(sudoku.clue_mask(puzzles), -100, solutions)
    features = Features({"input_ids": List(Value("int8")), "labels": List(Value("int8"))})
    rows = {"input_ids": solutions.tolist(), "labels": labels.tolist()}
    Dataset.from_dict(rows, features=features).to_parquet(output / "train.parquet")


if __name__ == "__main__":
    main()
