"""`prism-plugin record`: let samplers fill rows that are known, and keep their canvases to train on.

Over several processes: `accelerate launch -m prism_plugin.cli.main record ...`.
"""

import argparse
import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from rich.console import Console

from prism_plugin.backbones import load_backbone, load_tokenizer
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.progress import counting_progress
from prism_plugin.cli.sampler_options import read_pairs
from prism_plugin.data import DataSettings, Origin, as_dataset, fingerprint, prepare_rows, read_rows
from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.fingerprints import model_fingerprint
from prism_plugin.evaluation.recorded_files import RecordingFolder
from prism_plugin.evaluation.recording import Recorder, Recording
from prism_plugin.evaluation.tasks import task_of
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.places import require_apart
from prism_plugin.parsing_yaml import read_yaml
from prism_plugin.reader import from_mapping
from prism_plugin.report.tables import recording_table
from prism_plugin.training.given_rows import as_prepared

# A process waits for the others at the end, whose shares may take longer than any step of a training.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class RecordedData(DataSettings):
    """Which rows are filled, and how they become tokens."""

    path: str = field(metadata={"help": "json, jsonl, csv, parquet or txt file, a task's own file, or a Hub data set."})
    split: str | None = field(default=None, metadata={"help": "Split of a Hub data set."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub data set."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first rows."})


@dataclass(frozen=True, kw_only=True)
class RecordingRecipe:
    """All that defines a recording.

    Attributes:
        data: The rows.
        recording: What is recorded of them.
        adapter: Folder of a trained adapter.
        backbone: Folder or Hub id of a model without a quality head, in its place; beside it, where its backbone is now.
        mask_token_id: Of a backbone alone, where neither its config nor its tokenizer tells.
        tokenizer: Load the tokenizer of a backbone alone. Rows of token ids can do without; padding may then be drawn.
    """

    data: RecordedData
    recording: Recording
    adapter: str | None = None
    backbone: str | None = None
    mask_token_id: int | None = None
    tokenizer: bool = True

    def __post_init__(self) -> None:
        if self.adapter is None and self.backbone is None:
            raise ConfigurationError("Give `adapter`, a trained one, or `backbone`, a model without a quality head.")
        if self.adapter is not None and (self.mask_token_id is not None or not self.tokenizer):
            raise ConfigurationError("`mask_token_id` and `tokenizer` go with a `backbone` alone; an adapter knows its own.")
        if self.data.limit is not None and self.data.limit < 1:
            raise ConfigurationError(f"`limit` must be at least 1, got {self.data.limit}.")
        for source in self.recording.sources:
            if "quality" in source.sampler_settings().reads and self.adapter is None:
                raise ConfigurationError(
                    f"The preset {source.preset!r} reads the quality head, which a backbone alone lacks; give `adapter`."
                )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--recipe", type=Path, help="YAML with all that defines a recording; options below change it")
    parser.add_argument("--output", type=Path, required=True, help="folder for states.parquet and held-out.parquet")
    parser.add_argument("--adapter", help="folder of a trained adapter, or its id on the Hub")
    parser.add_argument("--backbone", help="without `--adapter`: what fills the rows; with it: where its backbone is now")
    parser.add_argument("--data", help="rows that are known: as `train` takes them, or a task's own file")
    parser.add_argument("--preset", help="the one sampler, in place of the recipe's sources; needs `--num-steps`")
    parser.add_argument("--num-steps", type=int, help="forward passes at most, of `--preset`")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of `--preset`")
    parser.add_argument("--masked", type=float, help="share of each row's maskable tokens that is to be filled (default: all)")
    parser.add_argument("--held-out", type=float, help="share of the rows whose states are written apart (default: none)")
    parser.add_argument("--limit", type=int, help="use only the first rows")
    parser.add_argument("--seed", type=int, help="of all draws (default: 0)")
    parser.add_argument("--fresh", action="store_true", help="delete the recording in the folder and start over")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the backbone's own Python code run")
    add_device_options(parser, batch_size=None)
    parser.add_argument("--batch-size", type=int, help="rows at once (default: 64)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Record, and print what was found. Returns the exit code."""
    where = placement(args)
    recipe = _recipe(args)
    processes = PartialState(cpu=where["device_map"] == "cpu", timeout=_PATIENCE)
    if args.device == "auto":
        where["device_map"] = str(processes.device)
    datasets.disable_progress_bars()
    require_apart(args.output, {"the adapter": recipe.adapter, "the backbone": recipe.backbone}, "`--output`")
    rows, model = _rows_and_model(args, recipe, where)
    settings = {name: value for name, value in asdict(recipe.data).items() if name not in ("path", "split", "revision")}
    asked = {**settings, **asdict(recipe.recording), "rows": fingerprint(rows), "model": model_fingerprint(model)}
    folder = RecordingFolder(args.output, json.loads(json.dumps(asked)))
    folder.require_own(fresh=args.fresh)
    processes.wait_for_everyone()  # or one would begin what another is still asking for
    if args.fresh or not folder.is_finished:
        _record(folder, Recorder(model, rows, recipe.recording, task_of(model)), processes, fresh=args.fresh)
    if processes.is_main_process:
        found = {"output": str(args.output), **folder.found}
        print(json.dumps(found)) if args.json else Console().print(recording_table(found))
    return 0


def stopped(args: argparse.Namespace) -> str:
    """Say how to go on after Ctrl-C."""
    again = "the same command, without `--fresh`," if args.fresh else "the same command"
    return f"stopped; the batches that were recorded are in {args.output}, and {again} goes on after them."


def _recipe(args: argparse.Namespace) -> RecordingRecipe:
    """The recipe's file with what the options say instead, or the options alone."""
    written: dict[str, Any] = {"data": {}, "recording": {}}
    source = "the options"
    if args.recipe is not None:
        source = str(args.recipe)
        given = read_yaml(args.recipe, "The recipe")
        if not isinstance(given, dict):
            raise ConfigurationError(f"{source}: a recipe of a recording is a mapping, found {str(given)[:60]!r}.")
        written |= {name: _anchored(name, value, args.recipe.resolve().parent) for name, value in given.items()}
    elif args.data is None or args.preset is None or (args.adapter is None and args.backbone is None):
        raise ConfigurationError(
            "Give `--recipe FILE`; or `--data`, `--preset` with `--num-steps`, and `--adapter` or `--backbone`."
        )
    if args.preset is None and (args.num_steps is not None or args.set):
        raise ConfigurationError("`--num-steps` and `--set` go with `--preset`; a recipe's sources have their own.")
    if args.preset is not None and args.num_steps is None:
        raise ConfigurationError("`--preset` needs `--num-steps`, the forward passes that it may use.")
    if args.adapter is not None or args.backbone is not None:  # other than the recipe's, whatever that names
        written |= {"adapter": args.adapter, "backbone": args.backbone}
    options = {"data": {"path": args.data, "limit": args.limit}, "recording": _of_recording(args)}
    for section, own in options.items():
        if isinstance(written[section], dict):
            written[section] = written[section] | {name: value for name, value in own.items() if value is not None}
    return from_mapping(RecordingRecipe, written, source=source)


def _of_recording(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {name: getattr(args, name) for name in ("masked", "held_out", "seed", "batch_size")}
    if args.preset is not None:
        options["sources"] = [{"preset": args.preset, "num_steps": args.num_steps, "settings": read_pairs(args.set)}]
    return options


def _anchored(name: str, value: Any, folder: Path) -> Any:
    """Paths of a recipe count from its folder; what is not there is taken for an id on the Hub."""
    if name == "data" and isinstance(value, dict) and "path" in value:
        return value | {"path": _anchored("path", value["path"], folder)}
    is_path = name in ("adapter", "backbone", "path") and isinstance(value, str) and (folder / value).exists()
    return str(folder / value) if is_path else value


def _rows_and_model(
    args: argparse.Namespace, recipe: RecordingRecipe, where: dict[str, Any]
) -> tuple[datasets.Dataset, PrismModel]:
    data, trusted = recipe.data, {"trust_remote_code": args.trust_remote_code}
    raw = read_rows(data.path, split=data.split, revision=data.revision)  # before a large model is loaded in vain
    if recipe.adapter is not None:
        model = PrismModel.from_pretrained(recipe.adapter, recipe.backbone, **trusted, **where)
        model.merge_and_unload()  # the same to rounding, without the cost of LoRA's own products
    else:
        place = str(recipe.backbone)
        tokenizer = load_tokenizer(place, **trusted) if recipe.tokenizer else None
        config, backbone = PrismConfig(mask_token_id=recipe.mask_token_id), load_backbone(place, **trusted, **where)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # nobody asks the head, but by its weights a recording is known again
            model = attach_quality_head(backbone, config, tokenizer=tokenizer)
    task = task_of(model)
    if Path(data.path).suffix == ".txt" and task is not None:
        raw = as_dataset(task.known(task.rows(data.path, data.limit), model))
    raw = raw.select(range(min(len(raw), data.limit or len(raw))))
    origin = Origin(data.path, counted=True)
    rows = prepare_rows(raw, model.tokenizer, mask_token_id=model.mask_token_id, settings=data, origin=origin)
    return as_prepared(rows, model, origin), model


def _record(folder: RecordingFolder, recorder: Recorder, processes: PartialState, *, fresh: bool) -> None:
    if processes.is_main_process:
        folder.begin(fresh=fresh)
    processes.wait_for_everyone()
    own = recorder.chunks[processes.process_index :: processes.num_processes]
    with counting_progress("recording", len(own), "batches", shown=processes.is_main_process) as note:
        for chunk in own:
            if not folder.has(chunk):
                folder.put(chunk, *recorder.record(chunk))
            note()
    processes.wait_for_everyone()
    if processes.is_main_process:
        folder.finish(recorder)
    processes.wait_for_everyone()
