"""Run tuned presets on the 1,000 test puzzles, three seeds, and print the tables with paired standard errors.

    python -m benchmarks.sudoku.compare --adapter adapters/sudoku-9x9/weights --tuned runs/tune.jsonl --log runs/compare.jsonl

Settings are the best of the tuning's log. Runs that the log holds already are not repeated; a sampler without chance is run
once. The first table allows each puzzle so many forwards; the second the mean puzzle, whatever a single one takes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.sudoku.trials import BUDGETS, FOLDER, Log, caps_of, needs_chance, run_trial
from benchmarks.sudoku.tune import TRIALS, best_trial
from prism_plugin.evaluation.tasks import Sudoku
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler

LEARNED = ("prism", "prism-confidence", "prism-threshold", "prism-refine", "prism-redraft")


@dataclass(frozen=True)
class Result:
    """A preset with a number of steps: success per test puzzle, mean over seeds, [puzzles]; forwards; what tuning saw."""

    preset: str
    num_steps: int
    solved: torch.Tensor
    passes: float
    tuned: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the trained adapter")
    parser.add_argument("--tuned", type=Path, required=True, help="the log of benchmarks.sudoku.tune")
    parser.add_argument("--log", type=Path, required=True, help="JSON lines, one a run")
    parser.add_argument("--presets", nargs="*", default=list(TRIALS), choices=TRIALS, help="which to run (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of samplers with chance (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use only the first puzzles")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = PrismModel.from_pretrained(args.adapter)
    model.merge_and_unload()  # the same to rounding, without the cost of LoRA's own products
    puzzles = Sudoku().rows(FOLDER / "data" / "test.txt", args.limit)
    log, tuning = Log(args.log), Log(args.tuned)
    results = []
    for preset in args.presets:
        for num_steps in caps_of(preset):
            tuned = best_trial(tuning, preset, num_steps)
            sampler = RemaskingSampler.from_preset(preset, model, num_steps=num_steps, **tuned["settings"])
            seeds = range(args.seeds if needs_chance(sampler) else 1)
            runs = [run_trial(log, model, puzzles, preset, num_steps, seed, tuned["settings"]) for seed in seeds]
            per_puzzle = torch.zeros(len(puzzles), dtype=torch.float64)
            for run in runs:
                per_puzzle[run["solved"]] += 1 / len(runs)
            passes = sum(run["num_forward_passes"] for run in runs) / len(runs)
            results.append(Result(preset, num_steps, per_puzzle, passes, tuned))
    print(_table_by_puzzle(results), _table_by_mean(results), sep="\n\n")


def _table_by_puzzle(results: list[Result]) -> str:
    """Markdown: success of each preset with each number of steps, then the differences that matter, paired over puzzles."""
    found = {(result.preset, result.num_steps): result for result in results}
    presets = list(dict.fromkeys(result.preset for result in results))
    steps = sorted({result.num_steps for result in results})
    lines = ["| preset | " + " | ".join(f"{one} steps" for one in steps) + " |", "| --- |" + " ---: |" * len(steps)]
    for preset in presets:
        cells = [_cell(found[preset, one]) if (preset, one) in found else "" for one in steps]
        lines.append(f"| `{preset}` | " + " | ".join(cells) + " |")
    pairs = [("prism", "random"), ("prism", "remdm-conf")]
    pairs += [("prism-redraft", theirs) for theirs in ("confidence", "threshold", "redraft")]
    for ours, theirs in pairs:
        if {ours, theirs} <= set(presets):
            both = [one for one in steps if (ours, one) in found and (theirs, one) in found]
            cells = [_mean(found[ours, one].solved - found[theirs, one].solved) for one in both]
            lines.append(f"| `{ours}` - `{theirs}` | " + " | ".join(cells + [""] * (len(steps) - len(both))) + " |")
    return "\n".join(lines)


def _table_by_mean(results: list[Result]) -> str:
    """Markdown: the best with the head and without it, chosen on the validation puzzles, within a mean number of forwards."""
    lines = [
        "| mean forwards in tuning, at most | with the head | without | difference |",
        "| --- | ---: | ---: | ---: |",
    ]
    for budget in BUDGETS:
        within = [result for result in results if result.tuned["num_forward_passes"] <= budget]
        groups = [[one for one in within if (one.preset in LEARNED) == learned] for learned in (True, False)]
        if all(groups):
            ours, theirs = (max(group, key=lambda one: one.tuned["success"]) for group in groups)
            named = [f"`{one.preset}`, {one.num_steps} steps: {_cell(one)}" for one in (ours, theirs)]
            lines.append(f"| {budget} | {named[0]} | {named[1]} | {_mean(ours.solved - theirs.solved)} |")
    return "\n".join(lines)


def _cell(result: Result) -> str:
    return f"{_mean(result.solved)} ({result.passes:.1f} used)"


def _mean(per_puzzle: torch.Tensor) -> str:
    """Mean over puzzles and its standard error, in percent."""
    return f"{100 * per_puzzle.mean():.1f} ± {100 * per_puzzle.std() / len(per_puzzle) ** 0.5:.1f}"


if __name__ == "__main__":
    main()
