"""`prism-plugin eval`: `sudoku` solves puzzles with sampler presets, at equal forward passes; `quality` judges the head."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from prism_plugin.cli import eval_quality
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.progress import sampling_progress
from prism_plugin.core.validation import require_seed
from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.tasks import sudoku, sudoku_eval
from prism_plugin.modeling import PrismModel
from prism_plugin.report.tables import sudoku_table
from prism_plugin.sampling import get_preset

SETTINGS_FILE = "sampler.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's tasks and their options."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    about = eval_quality.__doc__.split(": ", 1)[1]
    eval_quality.add_arguments(tasks.add_parser("quality", help=about, description=about))
    about = "solve puzzles with sampler presets, at equal forward passes"
    _add_sudoku_arguments(tasks.add_parser("sudoku", help=about, description=about))


def _add_sudoku_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, required=True, help="folder of a trained adapter")
    parser.add_argument("--data", type=Path, required=True, help="puzzles, one a line, 81 characters, 0 or . for blank")
    parser.add_argument(
        "--presets", default=",".join((*sudoku_eval.PRESETS, "prism-redraft")), help="comma-separated (default: %(default)s)"
    )
    parser.add_argument("--num-steps", type=int, default=26, help="forward passes at most per puzzle (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use only the first puzzles of the file")
    parser.add_argument("--seed", type=int, default=0, help="of the samplers' draws (default: %(default)s)")
    parser.add_argument(
        "--settings", type=Path, help=f"tuned settings of the presets (default: {SETTINGS_FILE} beside the adapter, if there)"
    )
    add_device_options(parser, batch_size=sudoku_eval.BATCH_SIZE)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print. Returns the exit code."""
    return eval_quality.run(args) if args.task == "quality" else _run_sudoku(args)


def _run_sudoku(args: argparse.Namespace) -> int:
    for name, value in (("--limit", args.limit), ("--num-steps", args.num_steps)):
        if value is not None and value < 1:
            raise ConfigurationError(f"`{name}` must be at least 1, got {value}.")
    require_seed(args.seed, "--seed")
    where = placement(args)
    presets = [name.strip() for name in args.presets.split(",")]
    for preset in presets:
        get_preset(preset)  # a misspelt name is found before anything is loaded
        if presets.count(preset) > 1:
            raise ConfigurationError(f"`--presets` takes each preset once, found {preset!r} twice; leave one of them out.")
    beside = args.adapter.resolve().parent / SETTINGS_FILE
    path = args.settings or (beside if beside.exists() else None)
    settings = sudoku_eval.read_settings(path) if path else {}
    puzzles = sudoku_eval.Puzzles.solve(sudoku.read_puzzles(args.data)[: args.limit])
    model = PrismModel.from_pretrained(args.adapter, **where)
    sudoku_eval.require_sudoku_model(model)
    model.merge_and_unload()  # the same to rounding, without the cost of LoRA's own products
    sudoku_eval.make_samplers(model, presets, args.num_steps, settings)
    count = len(puzzles.puzzles)
    request = {"num_steps": args.num_steps, "seed": args.seed, "batch_size": args.batch_size, "settings": settings}
    with sampling_progress(presets, count, args.num_steps, args.batch_size) as on_step:
        results = sudoku_eval.evaluate_presets(model, puzzles, presets, on_step=on_step, **request)
    if args.json:
        print(json.dumps(sudoku_eval.to_json(results, puzzles=count, num_steps=args.num_steps)))
    else:
        Console().print(sudoku_table(results, puzzles=count, num_steps=args.num_steps))
    return 0
