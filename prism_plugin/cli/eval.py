"""`prism-plugin eval`: a task compares sampler presets at equal forward passes; `quality` judges the head."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from prism_plugin.cli import eval_quality
from prism_plugin.cli.adapter_options import add_adapter_options, load_adapter
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.progress import sampling_progress
from prism_plugin.cli.task_options import TaskParser, add_task_options, task_from
from prism_plugin.core.validation import require_seed
from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.compare import BATCH_SIZE, evaluate_presets, make_samplers, read_settings, row_batches, to_json
from prism_plugin.evaluation.tasks import TASKS, Task
from prism_plugin.report.tables import preset_table
from prism_plugin.sampling import get_preset

SETTINGS_FILE = "sampler.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's tasks and their options."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=TaskParser)
    about = eval_quality.__doc__.split(": ", 1)[1]
    eval_quality.add_arguments(tasks.add_parser("quality", help=about, description=about))
    for name in TASKS.names():
        about = f"fill {TASKS.get(name).rows_are} with sampler presets, at equal forward passes"
        of_task = tasks.add_parser(name, help=about, description=about, allow_abbrev=False)
        _add_task_arguments(of_task, TASKS.get(name))
        add_task_options(of_task, name)


def _add_task_arguments(parser: argparse.ArgumentParser, task: type[Task]) -> None:
    add_adapter_options(parser)
    parser.add_argument("--data", type=Path, required=True, help=task.data_is)
    parser.add_argument("--presets", default=",".join(task.presets), help="comma-separated (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, default=26, help="forward passes at most for each (default: %(default)s)")
    parser.add_argument("--limit", type=int, help=f"use only the first {task.rows_are} of the file")
    parser.add_argument("--seed", type=int, default=0, help="of the samplers' draws (default: %(default)s)")
    parser.add_argument(
        "--settings", type=Path, help=f"tuned settings of the presets (default: {SETTINGS_FILE} beside the adapter, if there)"
    )
    add_device_options(parser, batch_size=BATCH_SIZE)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print. Returns the exit code."""
    return eval_quality.run(args) if args.task == "quality" else _run_task(args, task_from(args))


def _run_task(args: argparse.Namespace, task: Task) -> int:
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
    beside = Path(args.adapter).resolve().parent / SETTINGS_FILE
    path = args.settings or (beside if beside.exists() else None)
    settings = read_settings(path) if path else {}
    rows = task.rows(args.data, args.limit)
    model = load_adapter(args, where)
    task.require_model(model)
    model.merge_and_unload()  # the same to rounding, without the cost of LoRA's own products
    make_samplers(model, presets, args.num_steps, settings)
    request = {"num_steps": args.num_steps, "seed": args.seed, "batch_size": args.batch_size, "settings": settings}
    batches = row_batches(task, model, rows, args.batch_size)
    with sampling_progress(presets, len(batches) * args.num_steps) as on_step:
        results = evaluate_presets(task, model, rows, presets, on_step=on_step, **request)
    how = {"rows": len(rows), "num_steps": args.num_steps}
    if args.json:
        print(json.dumps(to_json(task, results, **how)))
    else:
        Console().print(preset_table(task, results, **how))
    return 0
