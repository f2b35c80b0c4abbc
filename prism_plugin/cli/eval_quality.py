"""`prism-plugin eval quality`: how good the head's numbers are, beside what comes free, on drafts and on a sampler's states."""

import argparse
import json
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console

from prism_plugin.cli.adapter_options import add_adapter_options, load_adapter
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.progress import counting_progress
from prism_plugin.cli.sampler_options import add_sampler_options, build_sampler, chosen_settings
from prism_plugin.core.validation import require_seed
from prism_plugin.data import DataSettings, Origin, prepare_rows, read_rows
from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.calibration import (
    ChosenThreshold,
    FittedScaling,
    QualityFigures,
    choose_threshold,
    fit_head_scaling,
    measure,
    to_plain,
)
from prism_plugin.evaluation.quality import JudgedTokens, judge_drafts, judge_states
from prism_plugin.evaluation.tasks import task_of
from prism_plugin.modeling import PrismModel
from prism_plugin.modeling.config_file import CONFIG_FILE
from prism_plugin.modeling.persistence import save_scaling
from prism_plugin.parsing_yaml import parse_yaml
from prism_plugin.report.calibration_plot import check_plot_file, plot_quality
from prism_plugin.report.tables import quality_tables, scaling_table, threshold_sentence
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.training import Objective, get_objective, objective_to_dict
from prism_plugin.training.given_rows import as_prepared, wants_history
from prism_plugin.writing import require_place

NAMES = {"drafts": "training drafts", "states": "the sampler's states"}
RECORDED_NAMES = {**NAMES, "drafts": "recorded drafts"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the task's options."""
    add_adapter_options(parser)
    parser.add_argument("--data", required=True, help="rows it was not trained on: json, jsonl, csv, tsv, parquet, txt")
    parser.add_argument("--on", choices=list(NAMES), help="judge drafts or sampler states only (default: both)")
    parser.add_argument(
        "--drafts", metavar="YAML", help="a draft rule, or a list of them, instead of those that the adapter was trained on"
    )
    add_sampler_options(parser)
    parser.add_argument(
        "--masked", type=float, help="share of each row's maskable tokens that the sampler is to fill (default: all)"
    )
    parser.add_argument("--max-length", type=int, help="cut rows on the right to this many tokens")
    parser.add_argument("--limit", type=int, help="use only the first rows")
    add_device_options(parser, batch_size=32)
    parser.add_argument("--seed", type=int, help="of drafts and samples (default: 0)")
    parser.add_argument(
        "--fit-temperature", action="store_true", help="scale the head's logits so that they fit, on states or else drafts"
    )
    parser.add_argument("--save", action="store_true", help="write the fitted scaling into the adapter's folder")
    parser.add_argument(
        "--precision", type=float, help="choose the highest threshold below which this share of the sampler's tokens is wrong"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the diagrams into a .png or .svg file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


def run(args: argparse.Namespace) -> int:
    """Judge, measure, print. Returns the exit code."""
    _check(args)
    where = placement(args)
    settings = chosen_settings(args)
    if args.plot is not None:
        check_plot_file(args.plot)
    datasets.disable_progress_bars()  # the bars that matter are those of the looks
    raw = read_rows(args.data)  # before a large model is loaded in vain
    recorded = "draft_ids" in raw.column_names
    names = RECORDED_NAMES if recorded else NAMES
    if recorded:
        _check_recorded(args)
    model = load_adapter(args, where)
    objective = None if args.on == "states" else _objective(args, model, recorded)
    sampler = None if args.on == "drafts" else build_sampler(args, model, settings)
    rows = _rows(args, model, raw)
    judged = _judge(args, model, objective, sampler, rows, names)
    found = _measured(args, judged)
    if args.plot is not None:
        figures = {names[name]: one for name, one in found.figures.items()}
        plot_quality(figures, args.plot, title=f"{args.adapter}, {len(rows)} rows")
    stored = None if found.fitted is None else _stored_scaling(model, found.fitted)
    if args.save and stored is not None:
        save_scaling(args.adapter, **stored)
    if not args.json:
        _show(args, found, stored, names)
        return 0
    asked = {"task": "quality", "adapter": args.adapter, "data": args.data, "rows": len(rows)}
    if not recorded:
        asked["seed"] = _seed(args)
    if objective is not None:
        asked["objective"] = objective_to_dict(objective)
    if sampler is not None:
        asked |= {"sampler": sampler.to_dict(), "masked": _masked(args)}
    print(json.dumps({**asked, **_plain(args, found, stored)}))
    return 0


@dataclass(frozen=True)
class _Found:
    """What was measured, and what was fitted and chosen if it was asked for."""

    figures: dict[str, QualityFigures]
    fitted: FittedScaling | None
    chosen: ChosenThreshold | None


def _measured(args: argparse.Namespace, judged: dict[str, JudgedTokens]) -> _Found:
    basis = judged.get("states") or judged["drafts"]
    fitted = fit_head_scaling(basis) if args.fit_temperature else None
    if args.save and fitted is not None:
        basis = fitted(basis)  # a threshold goes with what the folder says from now on
    chosen = None if args.precision is None else choose_threshold(basis, args.precision)
    return _Found({name: measure(one) for name, one in judged.items()}, fitted, chosen)


def _plain(args: argparse.Namespace, found: _Found, stored: dict[str, float] | None) -> dict[str, Any]:
    plain = {name: to_plain(one) for name, one in found.figures.items()}
    if found.fitted is not None:
        plain["scaling"] = {**to_plain(found.fitted), "stored": stored, "saved": args.save}
    if found.chosen is not None:
        plain["threshold"] = to_plain(found.chosen)
    return plain


def _show(args: argparse.Namespace, found: _Found, stored: dict[str, float] | None, names: dict[str, str]) -> None:
    console = Console()
    for name, one in found.figures.items():
        console.print(*quality_tables(one, title=names[name]), sep="\n")
    if found.fitted is not None and stored is not None:
        console.print(scaling_table(found.fitted))
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in stored.items())
        console.print(f"Saved in {args.adapter}: {numbers}." if args.save else "Not saved; `--save` writes it there.")
    if found.chosen is not None:
        console.print(threshold_sentence(found.chosen))


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be or would be ignored, before anything is loaded."""
    require_seed(args.seed, "--seed")
    for name in ("limit", "max_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"`--{name.replace('_', '-')}` must be at least 1, got {value}.")
    for name in ("masked", "precision"):
        value = getattr(args, name)
        if value is not None and not 0 < value <= 1:
            raise ConfigurationError(f"`--{name}` must be a share in (0, 1], got {value}.")
    if args.on == "states" and args.drafts is not None:
        raise ConfigurationError("`--drafts` would be ignored with `--on states`; leave one of them out.")
    for option, value in {"--preset": args.preset, "--masked": args.masked, "--precision": args.precision}.items():
        if args.on == "drafts" and value is not None:
            raise ConfigurationError(f"`{option}` is about the sampler's states, which `--on drafts` leaves out; drop one.")
    if args.save and not args.fit_temperature:
        raise ConfigurationError("`--save` writes what `--fit-temperature` fits; give both, or neither.")
    if args.save and not Path(args.adapter).is_dir():
        raise ConfigurationError(f"`--save` needs an adapter in a folder of this machine, found no folder {args.adapter}.")
    if args.save:
        require_place(Path(args.adapter) / CONFIG_FILE, "scaling")


def _masked(args: argparse.Namespace) -> float:
    return 1.0 if args.masked is None else args.masked


def _seed(args: argparse.Namespace) -> int:
    return 0 if args.seed is None else args.seed


def _check_recorded(args: argparse.Namespace) -> None:
    """Refuse what would leave recorded drafts out, or their place, and the seed of drafts that nobody draws."""
    if args.on != "drafts":
        raise ConfigurationError(
            f"{args.data} has recorded drafts (`draft_ids`), which the sampler would ignore; judge them with `--on drafts`, or "
            "drop the column."
        )
    for option, value in {"--drafts": args.drafts, "--seed": args.seed}.items():
        if value is not None:
            raise ConfigurationError(
                f"{args.data} has recorded drafts (`draft_ids`), so `{option}` would be ignored; drop the option or the column."
            )


def _objective(args: argparse.Namespace, model: PrismModel, recorded: bool) -> Objective:
    if recorded:
        # whatever the adapter learnt from; its other term is not judged
        return get_objective("prism_recorded", diffusion_weight=0.0)
    trained_by = model.prism_config.objective
    if args.drafts is None:
        if trained_by is None:
            raise ConfigurationError(
                f"{args.adapter} does not say on which drafts it was trained; give `--drafts`, such as "
                "`--drafts '{num_drafted: 4}'`, or `--on states`."
            )
        objective = get_objective(**trained_by, source=f"{args.adapter}: objective")
        if objective.reads_drafts:
            raise ConfigurationError(
                f"{args.adapter} was trained on recorded drafts, and {args.data} has none; give rows with `draft_ids`, "
                "`--drafts`, such as `--drafts '{num_drafted: 4}'`, or `--on states`."
            )
        return objective
    rules = parse_yaml(args.drafts, "--drafts")
    rules = rules if isinstance(rules, list) else [rules]
    if not all(isinstance(rule, dict) for rule in rules):
        raise ConfigurationError(f"`--drafts` takes a draft rule as YAML, such as '{{num_drafted: 4}}', found {args.drafts!r}.")
    kept = trained_by if trained_by is not None and "drafts" in trained_by else {}
    return get_objective(**{"name": "prism", **kept, "drafts": rules}, source="--drafts")


def _rows(args: argparse.Namespace, model: PrismModel, raw: Any) -> datasets.Dataset:
    """Prepare the rows, with what they should say: a task knows the answers to its own file, all else says it itself."""
    path, settings = Path(args.data), DataSettings(max_length=args.max_length)
    task = task_of(model)
    if path.suffix == ".txt" and task is not None:
        raw = task.known(task.rows(path, args.limit), model)
    else:
        raw = raw.select(range(min(len(raw), args.limit or len(raw))))
    origin = Origin(args.data, counted=True)
    how: dict[str, Any] = {"mask_token_id": model.mask_token_id, "settings": settings, "origin": origin}
    prepared = prepare_rows(raw, model.tokenizer, with_history=wants_history(model), **how)
    return as_prepared(prepared, model, origin)


def _judge(
    args: argparse.Namespace,
    model: PrismModel,
    objective: Objective | None,
    sampler: RemaskingSampler | None,
    rows: datasets.Dataset,
    names: dict[str, str],
) -> dict[str, JudgedTokens]:
    batches = math.ceil(len(rows) / args.batch_size)
    judged, how = {}, {"batch_size": args.batch_size, "seed": _seed(args)}
    with ExitStack() as stack:
        if objective is not None:
            on_batch = stack.enter_context(counting_progress(names["drafts"], batches, "batches"))
            judged["drafts"] = judge_drafts(model, objective, rows, on_batch=on_batch, **how)
    with ExitStack() as stack:
        if sampler is not None:
            on_look = stack.enter_context(counting_progress(names["states"], batches * sampler.num_steps, "looks"))
            how["origin"] = Origin(args.data, counted=True)
            judged["states"] = judge_states(sampler, rows, masked=_masked(args), on_look=on_look, **how)
    return judged


def _stored_scaling(model: PrismModel, fitted: FittedScaling) -> dict[str, float]:
    """The scaling of the head as it was trained: the one that it has already, and the fitted one after it."""
    config = model.prism_config
    return {
        "temperature": config.quality_temperature * fitted.temperature,
        "bias": config.quality_bias / fitted.temperature + fitted.bias,
    }
