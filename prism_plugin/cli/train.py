"""`prism-plugin train`: a recipe -> a trained quality head; also `accelerate launch -m prism_plugin.cli.train`."""

import argparse
import contextlib
import json
import math
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed

from prism_plugin.backbones import load_backbone
from prism_plugin.cli.dry_run import dry_run, dry_run_table
from prism_plugin.cli.from_recipe import (
    attached,
    check_backbone_section,
    check_evaluation,
    check_output_dir,
    check_processes,
    origins_of,
    raw_rows,
    taken_for_an_id,
    training_arguments,
    where_of,
)
from prism_plugin.cli.recipe import DataSection, Recipe, load_recipe, settings
from prism_plugin.cli.run_record import RunRecord, begin, refuse_other_run, require_usable
from prism_plugin.cli.verb import Call, ended, run_verb
from prism_plugin.data import Origin, fingerprint, prepare_rows
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismModel
from prism_plugin.modeling.hub import require_hub
from prism_plugin.modeling.model_card import CardFacts
from prism_plugin.training import Objective, PrismTrainer, PrismTrainingArguments, get_objective
from prism_plugin.training.checkpoints import last_checkpoint
from prism_plugin.training.given_rows import as_prepared, wants_history
from prism_plugin.training.run_folder import claimed, repository_of, where_saved

_TAKEN = ("recipe", "dry-run", "fresh", "json", "traceback")  # the verb's own options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options: the recipe, and every setting of it by its dotted name, or its last part if that is clear."""
    parser.allow_abbrev = False
    parser.usage = "%(prog)s --recipe FILE [--dry-run] [--fresh] [--json] [--SETTING VALUE ...]"
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file with the sections backbone, data, attach, ...")
    parser.add_argument("--fresh", action="store_true", help="delete the run in output_dir and start over")
    parser.add_argument("--dry-run", action="store_true", help="check all that can be checked without the weights; no training")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, and the rest on stderr")
    known = settings()
    last_parts = Counter(name.rpartition(".")[2] for name in known)
    group = parser.add_argument_group("settings of the recipe", "a value is YAML, true when left out: --max_steps 10 --bf16")
    for name, text in known.items():
        last = name.rpartition(".")[2]
        flags = [f"--{name}"] + ([f"--{last}"] if last_parts[last] == 1 and last not in _TAKEN else [])
        group.add_argument(
            *flags,
            dest=f"recipe:{name}",
            metavar="VALUE",
            nargs="?",
            const="true",
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
        )


def run(args: argparse.Namespace) -> int:
    """Train by a recipe, and print what came of it on the main process. Returns the exit code."""
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        summary, is_main = _carry_out(args)
    if is_main:
        in_words = dry_run_table if args.dry_run else _table
        print(json.dumps(summary) if args.json else in_words(summary))
    return 0


def stopped(args: argparse.Namespace) -> str:
    """Say how to go on after Ctrl-C."""
    if args.dry_run:
        return "stopped; a dry run writes nothing."
    again = "the same command, without `--fresh`," if args.fresh else "the same command"
    output_dir = Path(_recipe(args).training["output_dir"])
    newest = last_checkpoint(output_dir)
    if newest is None:
        return f"stopped before a checkpoint was written; {again} starts over, and a smaller `save_steps` saves more often."
    return f"stopped; {newest} is whole, and {again} goes on from there."


def _carry_out(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    if not args.dry_run:
        return train_by_recipe(_recipe(args), source=args.recipe, fresh=args.fresh)
    if args.fresh:
        raise ConfigurationError("--dry-run changes nothing, so --fresh would be ignored; leave one of them out.")
    return dry_run(_recipe(args), args.recipe)


def _recipe(args: argparse.Namespace) -> Recipe:
    overrides = {key.removeprefix("recipe:"): text for key, text in vars(args).items() if key.startswith("recipe:")}
    return load_recipe(args.recipe, overrides)


def train_by_recipe(recipe: Recipe, *, source: Path, fresh: bool) -> tuple[dict[str, Any], bool]:
    """Train by a recipe, and save the result in its `output_dir`.

    Args:
        recipe: What `load_recipe` gave.
        source: The recipe's file, for error messages.
        fresh: Delete checkpoints and result of a run in `output_dir` and start over, instead of going on from the last whole
            checkpoint.

    Returns:
        Steps, seconds, the last logged and the evaluation's figures; and whether this is the main process.

    Raises:
        PrismError: If recipe, data, backbone or `output_dir` cannot be used; before any training.
    """
    objective = get_objective(**recipe.objective, source=f"{source}: objective")
    training = training_arguments(recipe, source)
    check_evaluation(recipe, training, source)
    check_backbone_section(recipe, source)
    check_processes(training, source)
    check_output_dir(recipe, source)
    if training.push_to_hub:
        where_saved(training, partial(require_hub, repository_of(training), training.hub_token))
    with claimed(training, partial(require_usable, fresh=fresh)):
        return _train(recipe, objective, training, source=source, fresh=fresh)


def _train(
    recipe: Recipe, objective: Objective, training: PrismTrainingArguments, *, source: Path, fresh: bool
) -> tuple[dict[str, Any], bool]:
    output_dir, section = Path(training.output_dir), recipe.backbone
    train_rows, eval_rows = raw_rows(recipe.data, objective, with_history=bool(recipe.attach.head_history))
    set_seed(training.seed)  # the head and LoRA start from random weights
    with taken_for_an_id(section.path):
        backbone = load_backbone(section.path, dtype=section.dtype, quantization=section.quantization, **where_of(section))
    model = attached(recipe, backbone)
    train_rows, eval_rows = (
        None if rows is None else _prepared(rows, recipe.data, model, origin)
        for rows, origin in zip((train_rows, eval_rows), origins_of(recipe.data), strict=True)
    )
    record = RunRecord(
        recipe=recipe.given,
        num_processes=training.world_size,
        data=fingerprint(train_rows),
        eval_data=None if eval_rows is None else fingerprint(eval_rows),
    )
    if not fresh:
        where_saved(training, partial(refuse_other_run, output_dir, record))
    trainer = PrismTrainer(model, training, objective=objective, train_dataset=train_rows, eval_dataset=eval_rows)
    trainer.check_trainable()  # before --fresh deletes anything
    trainer.accelerator.wait_for_everyone()
    where_saved(training, partial(begin, output_dir, record, fresh=fresh))
    began = time.perf_counter()
    resumed = last_checkpoint(output_dir)
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    seconds = time.perf_counter() - began
    figures = {} if eval_rows is None else trainer.evaluate()
    model.card_facts = _card_facts(recipe.data, len(train_rows), figures, objective)
    trainer.save_model()
    return _summary(trainer, figures, seconds), trainer.is_world_process_zero()


def _prepared(rows: datasets.Dataset, data: DataSection, model: PrismModel, origin: Origin) -> datasets.Dataset:
    """Prepared rows, looked at here, where they still have the name of their file."""
    how: dict[str, Any] = {"mask_token_id": model.mask_token_id, "settings": data, "origin": origin}
    return as_prepared(prepare_rows(rows, model.tokenizer, with_history=wants_history(model), **how), model, origin)


def _card_facts(data: DataSection, num_rows: int, figures: dict[str, float], objective: Objective) -> CardFacts:
    """What the model card tells: the terms' figures on the evaluation rows, and the data, without paths of this machine."""
    name = Path(data.path).name if Path(data.path).exists() else data.path
    of_terms = tuple(f"eval_{term.name}_" for term in objective.terms)
    measured = {key: value for key, value in figures.items() if key.startswith(of_terms)}
    numbers = {key: value for key, value in measured.items() if not math.isnan(value)}
    return CardFacts(figures=numbers, data=f"{name}, {num_rows} rows")


def _summary(trainer: PrismTrainer, figures: dict[str, float], seconds: float) -> dict[str, Any]:
    names = ("loss", *trainer.meters.names)
    logged = next((log for log in reversed(trainer.state.log_history) if names[1] in log), {})
    last = {name: logged[name] for name in names if name in logged}
    measured = {**last, **{name: value for name, value in figures.items() if name.startswith("eval_")}}
    return {
        "output_dir": str(trainer.args.output_dir),
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 3),
        **{name: None if math.isnan(value) else value for name, value in measured.items()},  # JSON has no NaN
    }


def _table(summary: dict[str, Any]) -> str:
    width = max(map(len, summary))
    return "\n".join(
        f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}"
        for name, value in summary.items()
    )


def main() -> int:
    """Entry point of `python -m prism_plugin.cli.train`."""
    return ended(Call("prism-plugin train"), lambda call: run_verb(call, sys.argv[1:], lambda: sys.modules[__name__]))


if __name__ == "__main__":
    sys.exit(main())
