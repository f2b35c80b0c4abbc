"""Tune every preset on the 256 validation puzzles, with the same number of trials each, and write the best settings.

    python -m benchmarks.sudoku.tune --adapter adapters/sudoku-9x9/weights --log runs/tune.jsonl \\
        --output adapters/sudoku-9x9/sampler.yaml

Each budget of forward passes is tuned on its own. Trials that the log holds already are not repeated.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.sudoku.trials import FOLDER, Log, caps_of, run_trial
from prism_plugin.evaluation.tasks import Sudoku
from prism_plugin.modeling import PrismModel

TRIALS: dict[str, list[dict[str, Any]]] = {
    "random": [{"temperature": t} for t in (0.5, 0.3, 0.1)],
    "remdm-conf": [{"temperature": 0.3}, {"temperature": 0.1}, {"temperature": 0.1, "scale": 4.0}],
    "prism": [
        {"temperature": 0.3, "num_remask": 8},
        {"temperature": 0.1, "num_remask": 8},
        {"temperature": 0.1, "num_remask": 4},
    ],
    "confidence": [{"temperature": t} for t in (0.0, 0.1, 0.2)],
    "threshold": [{"threshold": t} for t in (0.95, 0.98, 0.995)],
    "redraft": [
        {"threshold": 0.99, "paces": [6, 5, 4, 3, 2, 1], "min_steps": 4, "visible_threshold": 0.2},
        {"threshold": 0.99, "paces": [8, 6, 4, 3, 2, 1], "min_steps": 3, "visible_threshold": 0.2},
        {"threshold": 0.99, "paces": [4, 3, 2], "min_steps": 4, "visible_threshold": 0.5, "temperature": 0.5},
    ],
    "prism-confidence": [
        {"num_remask": 2},
        {"num_remask": 4},
        {"num_remask": 8, "quality_threshold": 0.95, "draft_share": 0.5},
    ],
    "prism-threshold": [
        {"threshold": 0.97, "num_remask": 8, "quality_threshold": 0.95},
        {"threshold": 0.98, "num_remask": 24, "quality_threshold": 0.95},
        {"threshold": 0.99, "num_remask": 24, "quality_threshold": 0.9},
    ],
    "prism-refine": [
        {"num_rounds": 2, "num_remask": 32, "quality_threshold": 0.95},
        {"num_rounds": 2, "num_remask": 40, "quality_threshold": 0.99, "temperature": 0.2},
        {"num_rounds": 3, "num_remask": 40, "quality_threshold": 0.99, "temperature": 0.2},
    ],
    "prism-redraft": [
        {"threshold": 0.99, "paces": [6, 5, 4, 3, 2, 1], "min_steps": 4, "quality_threshold": 0.9},
        {"threshold": 0.99, "paces": [8, 6, 4, 3, 2, 1], "min_steps": 3, "quality_threshold": 0.5},
        {"threshold": 0.99, "paces": [4, 3, 2], "min_steps": 4, "quality_threshold": 0.9, "temperature": 0.5},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the trained adapter")
    parser.add_argument("--log", type=Path, required=True, help="JSON lines, one a trial")
    parser.add_argument("--output", type=Path, help="YAML of preset -> forward passes -> settings, from all that is logged")
    parser.add_argument("--presets", nargs="*", default=list(TRIALS), choices=TRIALS, help="what to try (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = PrismModel.from_pretrained(args.adapter)
    model.merge_and_unload()  # the same to rounding, without the cost of LoRA's own products
    puzzles = Sudoku().rows(FOLDER / "data" / "validation.txt")
    log = Log(args.log)
    for preset in args.presets:
        for num_steps in caps_of(preset):
            for settings in TRIALS[preset]:
                run_trial(log, model, puzzles, preset, num_steps, 0, settings)
    if args.output:
        best = {
            # copies, or settings that two numbers of steps share would be written as a YAML alias
            preset: {num_steps: copy.deepcopy(best_trial(log, preset, num_steps)["settings"]) for num_steps in caps_of(preset)}
            for preset in TRIALS
        }
        args.output.write_text(yaml.safe_dump(best, sort_keys=False), encoding="utf-8")


def best_trial(log: Log, preset: str, num_steps: int) -> dict[str, Any]:
    """The trial with the highest success; of equals, the first tried."""
    tried = [log.find(preset=preset, num_steps=num_steps, seed=0, settings=settings) for settings in TRIALS[preset]]
    if None in tried:
        raise SystemExit(
            f"{log.path} must hold all trials of {preset} with {num_steps} steps; run benchmarks.sudoku.tune first"
        )
    return max(tried, key=lambda record: record["success"])


if __name__ == "__main__":
    main()
