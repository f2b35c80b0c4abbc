"""`prism-plugin demo`: fine-tune a fresh quality head and LoRA on the shipped Sudoku backbone, then compare samplers."""

import argparse
import contextlib
import json
import math
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import transformers
from rich.console import Console

import prism_plugin
from prism_plugin.cli.eval import SETTINGS_FILE
from prism_plugin.cli.progress import sampling_progress
from prism_plugin.cli.recipe import load_recipe
from prism_plugin.cli.run_record import holds_run
from prism_plugin.cli.train import train_by_recipe
from prism_plugin.core.validation import require_seed
from prism_plugin.errors import ConfigurationError, StoredStateError
from prism_plugin.evaluation.compare import (
    BATCH_SIZE,
    PresetResult,
    evaluate_presets,
    generators,
    make_samplers,
    read_settings,
    to_json,
)
from prism_plugin.evaluation.tasks import Sudoku
from prism_plugin.evaluation.tasks.sudoku import Puzzle
from prism_plugin.modeling import PrismModel
from prism_plugin.report import Generation, require_page_path, trace_generation, write_trace_page
from prism_plugin.report.tables import preset_table
from prism_plugin.sampling import RemaskingSampler

FOLDER = "sudoku-9x9"
PRESETS = ("random", "remdm-conf", "prism", "confidence", "threshold", "prism-confidence")
PAGE = "prism-demo.html"


@dataclass(frozen=True)
class _Size:
    """How much the demo does: optimizer steps, their warm-up, rows in each, puzzles, forward passes per puzzle."""

    train_steps: int
    warmup_steps: int
    batch_size: int
    puzzles: int
    num_steps: int


# Full: under 10 minutes on two cores, most of it training. Quick: the same path, to see that it works.
FULL = _Size(train_steps=300, warmup_steps=20, batch_size=64, puzzles=200, num_steps=26)
QUICK = _Size(train_steps=4, warmup_steps=1, batch_size=8, puzzles=8, num_steps=9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--quick", action="store_true", help="the same path in under a minute; its figures mean nothing")
    parser.add_argument("--output", type=Path, help="keep the trained adapter in this folder (default: a temporary one)")
    parser.add_argument(
        "--report", type=Path, default=Path(PAGE), metavar="FILE.html",
        help="where a page goes that replays how each sampler solves one puzzle (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of training and sampling (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Train, save, load, solve, print. Returns the exit code."""
    folder = find_folder(FOLDER)
    size = QUICK if args.quick else FULL
    require_seed(args.seed, "--seed")
    require_page_path(args.report)
    _require_free(args)
    log = Console(stderr=True)
    # the bars that matter are the trainer's and the samplers'
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    with contextlib.ExitStack() as stack:
        if args.json:  # whatever libraries print must not spoil the one object
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        output = args.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log.print(f"1/2  Fine-tuning a quality head and LoRA for {size.train_steps} steps on {folder / 'backbone'}")
        training = _train(folder, output, size, args.seed)
        log.print(f"2/2  Loading what was saved, and solving {size.puzzles} held-out puzzles with each preset")
        results = _solve(folder, output, size, args)
    if args.json:
        report = to_json(Sudoku(), results, rows=size.puzzles, num_steps=size.num_steps)
        print(json.dumps({**report, "training": training, "page": str(args.report)}))
        return 0
    console = Console()
    console.print(preset_table(Sudoku(), results, rows=size.puzzles, num_steps=size.num_steps))
    console.print(
        f"Trained for {training['steps']} steps in {training['seconds']:.0f} s. On drafts from puzzles that it was not trained "
        f"on, the head tells right from wrong tokens with AUROC {training['quality_auroc']:.3f} and ECE "
        f"{training['quality_ece']:.3f}."
    )
    console.print(f"How each sampler went about one of the puzzles, look by look: {args.report.absolute()}", soft_wrap=True)
    return 0


def _require_free(args: argparse.Namespace) -> None:
    """Refuse, before anything is trained, to write over a run or over the page's own place."""
    if args.output is None:
        return
    if holds_run(args.output):
        raise ConfigurationError(
            f"`--output` {args.output} holds a trained head, which the demo would write over; choose another folder."
        )
    if args.output.resolve() == args.report.resolve():
        raise ConfigurationError(f"`--output` and `--report` must be two places, found {args.report} for both; change one.")


def find_folder(name: str) -> Path:
    """Find a folder of `adapters/`: in the checkout, else where the wheel put it.

    Raises:
        StoredStateError: If it is in neither place.
    """
    places = [
        Path(prism_plugin.__file__).parents[1] / "adapters",
        Path(sysconfig.get_path("data")) / "share/prism_plugin/adapters",
    ]
    for place in places:
        if (place / name / "recipe.yaml").exists():
            return place / name
    raise StoredStateError(
        f"The demo needs the folder {name}, found it neither in {places[0]} nor in {places[1]}; install the wheel, or run in "
        "a checkout."
    )


def _train(folder: Path, output: Path, size: _Size, seed: int) -> dict[str, Any]:
    overrides = {
        "training.output_dir": str(output),
        "training.max_steps": str(size.train_steps),
        "training.warmup_steps": str(size.warmup_steps),
        "training.per_device_train_batch_size": str(size.batch_size),
        "training.per_device_eval_batch_size": str(BATCH_SIZE),  # it changes nothing but rounding
        "training.save_strategy": "'no'",
        "training.eval_strategy": "'no'",
        "training.seed": str(seed),
    }
    recipe = folder / "recipe.yaml"
    summary, _ = train_by_recipe(load_recipe(recipe, overrides), source=recipe, fresh=True)
    return {
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "quality_auroc": summary["eval_quality_auroc"],
        "quality_ece": summary["eval_quality_ece"],
    }


def _solve(folder: Path, output: Path, size: _Size, args: argparse.Namespace) -> list[PresetResult]:
    """Solve the puzzles with each preset, and write the page about the first of them."""
    model = PrismModel.from_pretrained(output)
    model.merge_and_unload()  # the same to rounding, without the cost of LoRA's own products
    settings = read_settings(folder / SETTINGS_FILE)
    task = Sudoku()
    puzzles = task.rows(folder / "data" / "test.txt", size.puzzles)
    with sampling_progress(PRESETS, math.ceil(size.puzzles / BATCH_SIZE) * size.num_steps) as on_step:
        results = evaluate_presets(
            task, model, puzzles, PRESETS, num_steps=size.num_steps, seed=args.seed, settings=settings, on_step=on_step
        )
    samplers = make_samplers(model, PRESETS, size.num_steps, settings)
    generations = [_replay(sampler, preset, puzzles[0], args.seed) for preset, (sampler, _) in samplers.items()]
    # those that take tokens back come first: there is more to see
    generations.sort(key=lambda generation: -generation.figures()["num_remasked"])
    write_trace_page(args.report, generations, title="One held-out puzzle, look by look")
    return results


def _replay(sampler: RemaskingSampler, preset: str, puzzle: Puzzle, seed: int) -> Generation:
    task = Sudoku()
    canvas, _ = task.canvas([puzzle], sampler.model)
    output = sampler.infill(canvas, generator=generators(seed, 0, 1), return_trace=True)
    solved = task.judge([puzzle], output.sequences.cpu(), sampler.model)["success"].value
    columns = task.layout(canvas.shape[1])
    return trace_generation(output, 0, sampler, columns=columns, name=f"{preset}: {'solved' if solved else 'not solved'}")
