"""Record what the samplers' canvases hold on the way, on training puzzles: the drafts that the adapter is trained on.

    python -m benchmarks.sudoku.states --backbone adapters/sudoku-9x9/backbone --output adapters/sudoku-9x9/data

Each training puzzle is moved by a random symmetry and solved once, in confidence order with one cell a look, by threshold,
or in random order with sampled digits. Kept are a few states of each run, chosen at random, and four times as many of a run
of the first two samplers that went wrong, since most do not. Rows hold `input_ids` (the solution), `maskable` (not a clue)
and `draft_ids` (the canvas).
`states.parquet` is to train on; `held-out.parquet` has those of the last puzzles of each sampler.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import torch
from tqdm import tqdm

from benchmarks.sudoku import FOLDER
from prism_plugin import PrismConfig, attach_quality_head, load_backbone
from prism_plugin.data import read_rows
from prism_plugin.evaluation.compare import BATCH_SIZE, generators
from prism_plugin.evaluation.tasks import sudoku, sudoku_grids
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.types import TokenIds

SEED, HELD_OUT, FEWEST = 103, 0.02, 250


@dataclass(frozen=True)
class Source:
    """A sampler, the share of the puzzles that it solves, and how many states are kept of a run that ends right or wrong."""

    preset: str
    num_steps: int
    settings: dict[str, Any]
    share: float
    of_right: int
    of_wrong: int


SOURCES = (
    Source("confidence", 51, {}, 0.6, of_right=4, of_wrong=16),
    Source("threshold", 51, {"threshold": 0.98}, 0.2, of_right=2, of_wrong=8),
    Source("random", 26, {"temperature": 0.2}, 0.2, of_right=8, of_wrong=8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the backbone that solves")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--puzzles", type=int, default=10_000, help="training puzzles to solve (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    args = parser.parse_args()
    if args.puzzles < FEWEST:
        parser.error(f"--puzzles must be at least {FEWEST}, so that some of each sampler's are held out, found {args.puzzles}")
    torch.set_num_threads(args.threads)
    model = attach_quality_head(load_backbone(args.backbone), PrismConfig(mask_token_id=sudoku.MASK_TOKEN_ID))
    solutions, puzzles = read_training_puzzles(args.puzzles)
    # how far the puzzle stands among those of its sampler, its number, a state
    kept: list[tuple[float, int, torch.Tensor]] = []
    begin = 0
    for source in SOURCES:
        end = begin + round(source.share * len(puzzles))
        sampler = RemaskingSampler.from_preset(source.preset, model, num_steps=source.num_steps, **source.settings)
        for first in tqdm(range(begin, end, BATCH_SIZE), desc=source.preset, unit="batch"):
            here = slice(first, min(first + BATCH_SIZE, end))
            found = record(sampler, source, puzzles[here], solutions[here], first)
            kept += [((number - begin) / (end - begin), number, state) for number, state in found]
        begin = end
    kept.sort(key=lambda one: one[:2])
    numbers = torch.tensor([number for _, number, _ in kept])
    # every state by a symmetry of its own, or the language model would learn the grids by heart
    rows = move(SEED, solutions[numbers], puzzles[numbers], torch.stack([state for *_, state in kept]))
    training = sum(place < 1 - HELD_OUT for place, *_ in kept)
    args.output.mkdir(parents=True, exist_ok=True)
    write(args.output / "states.parquet", *(one[:training] for one in rows))
    write(args.output / "held-out.parquet", *(one[training:] for one in rows))


def read_training_puzzles(count: int) -> tuple[TokenIds, ...]:
    """Solutions and puzzles of the first training rows, each moved by a symmetry."""
    rows = read_rows(str(FOLDER / "data" / "train.parquet")).select(range(count)).with_format("torch")
    solutions, labels = rows["input_ids"][:].long(), rows["labels"][:].long()
    return move(SEED, solutions, torch.where(labels == -100, solutions, sudoku.MASK_TOKEN_ID))


def move(seed: int, *grids: TokenIds) -> tuple[TokenIds, ...]:
    """Move grids, [count, 81] each, by random symmetries: a different one for each row, the same one for a row of all."""
    return tuple(sudoku_grids.augment(one, torch.Generator().manual_seed(seed)) for one in grids)


def record(
    sampler: RemaskingSampler, source: Source, puzzles: TokenIds, solutions: TokenIds, first: int
) -> list[tuple[int, torch.Tensor]]:
    """Solve some puzzles; number of the puzzle and canvas of each state that is kept. `first` is the number of the first."""
    states: list[list[torch.Tensor]] = [[] for _ in puzzles]

    def keep(step: Any) -> None:
        for row in step.looked.nonzero().flatten().tolist():
            states[row].append(step.tokens_after[row])

    rows = generators(SEED, first, len(puzzles))
    right = (sampler.infill(puzzles, generator=rows, on_step=keep).sequences == solutions).all(-1)
    kept = []
    for row, (of_row, is_right) in enumerate(zip(states, right.tolist(), strict=True)):
        chosen = torch.randperm(len(of_row), generator=rows[row])[: source.of_right if is_right else source.of_wrong]
        kept += [(first + row, of_row[index]) for index in chosen.tolist()]
    return kept


def write(path: Path, solutions: TokenIds, puzzles: TokenIds, states: TokenIds) -> None:
    """Write rows, and say how many of them hold an error."""
    blanks = puzzles == sudoku.MASK_TOKEN_ID
    columns = {"input_ids": solutions.tolist(), "maskable": blanks.tolist(), "draft_ids": states.tolist()}
    cells, flags = datasets.List(datasets.Value("int8")), datasets.List(datasets.Value("bool"))
    features = datasets.Features({"input_ids": cells, "maskable": flags, "draft_ids": cells})
    beside = path.with_name(f".{path.name}")
    # by hand, since `to_parquet` always takes snappy, under which a row costs half as much again
    pyarrow.parquet.write_table(datasets.Dataset.from_dict(columns, features=features).data.table, beside, compression="zstd")
    beside.replace(path)
    wrong = ((states != solutions) & (states != sudoku.MASK_TOKEN_ID)).any(-1).sum()
    print(f"{path}: {len(states)} states, {wrong} with a wrong cell")


if __name__ == "__main__":
    main()
