"""What remasking costs in diversity: different solutions of puzzles that have many, with it and without.

    python -m benchmarks.sudoku.diversity --adapter adapters/sudoku-9x9/deep

Each puzzle has so few clues that it has many solutions, and each sampler fills it several times by chance. Of the draws that
break no rule: how many they are, which share of their pairs differ, and the entropy of a blank cell over them, in nats. All
samplers have the same temperature and number of looks. Figures of pairs and cells are means over the puzzles that every sampler
solved twice.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from prism_plugin.evaluation.compare import generators
from prism_plugin.evaluation.tasks.sudoku import is_solved
from prism_plugin.evaluation.tasks.sudoku_grids import complete_grids
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler

SAMPLERS = {
    "confidence": ("confidence", {}),
    "prism-confidence": ("prism-confidence", {"num_remask": 4}),
    "prism-redraft": ("prism-redraft", {"threshold": 0.99, "paces": [4, 3, 2], "min_steps": 4, "quality_threshold": 0.6}),
}


def puzzles_of(count: int, clues: int, seed: int) -> Tensor:
    """Grids with all but a few cells blank, [count, 81]."""
    grids, chance = complete_grids(count, seed), torch.Generator().manual_seed(seed)
    shown = torch.rand(grids.shape, generator=chance).argsort(-1).argsort(-1) < clues
    return grids * shown


def drawn(sampler: RemaskingSampler, puzzles: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Grids, [count, samples, 81], and which of them are solutions."""
    requests, found = puzzles.repeat_interleave(samples, dim=0), []
    for first in range(0, len(requests), 256):
        part = requests[first : first + 256]
        found.append(sampler.infill(part, generator=generators(0, first, len(part))).sequences)
    grids = torch.cat(found)
    return grids.view(len(puzzles), samples, 81), is_solved(grids, requests).view(len(puzzles), samples)


def share_of_pairs_that_differ(grids: Tensor) -> float:
    """Of all pairs of draws, [draws, 81]."""
    same = (grids.unsqueeze(0) == grids.unsqueeze(1)).all(-1).sum() - len(grids)
    return 1 - float(same) / (len(grids) * (len(grids) - 1))


def entropy_of_cells(grids: Tensor, blank: Tensor) -> float:
    """The mean over blank cells of the entropy of a digit over draws, [draws, 81], in nats."""
    shares = torch.nn.functional.one_hot(grids[:, blank], 10).double().mean(0)
    return float(-(shares * shares.clamp(min=1e-12).log()).sum(-1).mean())


def main() -> None:
    """Draw, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the trained adapter")
    parser.add_argument("--puzzles", type=int, default=48)
    parser.add_argument("--clues", type=int, default=22)
    parser.add_argument("--samples", type=int, default=24, help="draws of each puzzle by each sampler")
    parser.add_argument("--num-steps", type=int, default=26)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, puzzles = PrismModel.from_pretrained(args.adapter), puzzles_of(args.puzzles, args.clues, seed=11)
    found = {}
    for name, (preset, settings) in SAMPLERS.items():
        how = {"num_steps": args.num_steps, "temperature": args.temperature, **settings}
        found[name] = drawn(RemaskingSampler.from_preset(preset, model, **how), puzzles, args.samples)
    counted = [row for row in range(len(puzzles)) if all(int(right[row].sum()) > 1 for _, right in found.values())]
    figures = {}
    for name, (grids, right) in found.items():
        own = [(grids[row][right[row]], puzzles[row] == 0) for row in counted]
        figures[name] = {
            "solved": float(right.double().mean()),
            "pairs_that_differ": sum(share_of_pairs_that_differ(grid) for grid, _ in own) / max(1, len(own)),
            "entropy_of_cells": sum(entropy_of_cells(grid, blank) for grid, blank in own) / max(1, len(own)),
        }
    if args.json:
        print(json.dumps({"puzzles": len(puzzles), "counted": len(counted), "samplers": figures}))
        return
    about = f"{len(puzzles)} puzzles of {args.clues} clues, {args.samples} draws each"
    print(f"{about}; pairs and cells over {len(counted)} of them\n")
    print("| sampler | solved | pairs that differ | entropy of a cell, nats |\n| --- | ---: | ---: | ---: |")
    for name, one in figures.items():
        print(f"| `{name}` | {one['solved']:.1%} | {one['pairs_that_differ']:.1%} | {one['entropy_of_cells']:.3f} |")


if __name__ == "__main__":
    main()
