"""Run tuned presets on the 1,000 test puzzles, three seeds, and print the table with paired standard errors.

    python -m benchmarks.sudoku.compare --adapter adapters/sudoku-9x9/weights --log runs/compare.jsonl

Settings come from `sampler.yaml` beside the adapter. Runs that the log holds already are not repeated; a sampler without
chance is run once.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.sudoku.trials import BUDGETS, FOLDER, Log, needs_chance, run_trial
from prism_plugin.evaluation.tasks import sudoku, sudoku_eval
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler

LEARNED = ("prism", "prism-confidence", "prism-threshold", "prism-refine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the trained adapter")
    parser.add_argument("--settings", type=Path, help="tuned settings (default: sampler.yaml beside the adapter)")
    parser.add_argument("--log", type=Path, required=True, help="JSON lines, one a run")
    parser.add_argument("--presets", nargs="*", help="which to run (default: all in the settings)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of samplers with chance (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use only the first puzzles")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = PrismModel.from_pretrained(args.adapter)
    model.merge_and_unload()  # the same to rounding, without the cost of LoRA's own products
    settings = sudoku_eval.read_settings(args.settings or args.adapter.resolve().parent / "sampler.yaml")
    puzzles = sudoku.read_puzzles(FOLDER / "data" / "test.txt")[: args.limit]
    log, solved = Log(args.log), {}
    presets = list(settings) if args.presets is None else args.presets
    for num_steps in BUDGETS:
        for preset in presets:
            own = sudoku_eval.settings_for(settings, preset, num_steps)
            sampler = RemaskingSampler.from_preset(preset, model, num_steps=num_steps, **own)
            seeds = range(args.seeds if needs_chance(sampler) else 1)
            runs = [run_trial(log, model, puzzles, preset, num_steps, seed, own) for seed in seeds]
            per_puzzle = torch.zeros(len(puzzles), dtype=torch.float64)
            for run in runs:
                per_puzzle[run["solved"]] += 1 / len(runs)
            passes = sum(run["num_forward_passes"] for run in runs) / len(runs)
            solved[preset, num_steps] = per_puzzle, passes
    print(_table(solved, presets))


def _table(solved: dict[tuple[str, int], tuple[torch.Tensor, float]], presets: list[str]) -> str:
    """Markdown: success of each preset at each budget, then the differences that matter, with paired standard errors."""
    lines = [
        "| preset | " + " | ".join(f"{budget} forwards" for budget in BUDGETS) + " |",
        "| --- |" + " ---: |" * len(BUDGETS),
    ]
    for preset in presets:
        cells = [f"{_mean(*solved[preset, budget][:1])} ({solved[preset, budget][1]:.1f} used)" for budget in BUDGETS]
        lines.append(f"| `{preset}` | " + " | ".join(cells) + " |")
    pairs = [("prism", "random"), ("prism", "remdm-conf")]
    for ours, theirs in [pair for pair in pairs if set(pair) <= set(presets)]:
        cells = [_mean(solved[ours, budget][0] - solved[theirs, budget][0]) for budget in BUDGETS]
        lines.append(f"| `{ours}` - `{theirs}` | " + " | ".join(cells) + " |")
    groups = [[p for p in presets if p in LEARNED], [p for p in presets if p not in LEARNED]]
    if all(groups):
        cells = []
        for budget in BUDGETS:
            ours, theirs = (max(group, key=lambda p: solved[p, budget][0].mean()) for group in groups)
            cells.append(f"{_mean(solved[ours, budget][0] - solved[theirs, budget][0])} (`{ours}` - `{theirs}`)")
        lines.append("| best with the head - best without | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(per_puzzle: torch.Tensor) -> str:
    """Mean over puzzles and its standard error, in percent."""
    return f"{100 * per_puzzle.mean():.1f} ± {100 * per_puzzle.std() / len(per_puzzle) ** 0.5:.1f}"


if __name__ == "__main__":
    main()
