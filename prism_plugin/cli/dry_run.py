"""`prism-plugin train --dry-run`: all of a recipe that can be checked without the backbone's weights."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import FullyShardedDataParallelPlugin

from prism_plugin.backbones import build_backbone
from prism_plugin.backbones.quantization import can_quantize, check_kind
from prism_plugin.cli.from_recipe import (
    attached,
    check_backbone_section,
    check_evaluation,
    check_output_dir,
    origins_of,
    raw_rows,
    taken_for_an_id,
    training_arguments,
    where_of,
)
from prism_plugin.cli.recipe import Recipe
from prism_plugin.cli.run_record import require_usable
from prism_plugin.data import Origin, given_columns, longest_row, prepare_rows
from prism_plugin.errors import UnreachableDataError
from prism_plugin.modeling import PrismModel
from prism_plugin.training import Objective, PrismTrainingArguments, get_objective
from prism_plugin.training.checks import (
    check_metric,
    check_together,
    collator_of,
    freeze_unread_head,
    rows_per_step,
)
from prism_plugin.training.given_rows import as_prepared, wants_history
from prism_plugin.training.memory import StepShape, estimate_memory
from prism_plugin.training.optimization import check_optimization, chosen_optimizer
from prism_plugin.training.sharding import check_sharding

SAMPLE_ROWS = 100


def dry_run(recipe: Recipe, source: Path) -> tuple[dict[str, Any], bool]:
    """Check a recipe, and say what training by it would be. Reads the backbone's config and the data, and writes nothing.

    Args:
        recipe: What `load_recipe` gave.
        source: The recipe's file, for error messages.

    Returns:
        Family, mask token id, parameters, data, steps and memory, with what could not be checked under `not_checked`; and
        whether this is the main process.

    Raises:
        PrismError: If training by this recipe would be refused, for a reason that shows without weights.
    """
    objective = get_objective(**recipe.objective, source=f"{source}: objective")
    training, not_checked = _arguments_on_any_machine(recipe, source)
    check_evaluation(recipe, training, source)
    check_backbone_section(recipe, source)
    check_output_dir(recipe, source)
    require_usable(Path(training.output_dir), fresh=False)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":  # how `accelerate launch` passes its config file on
        precision = "bf16" if training.bf16 else "fp16" if training.fp16 else "no"
        check_sharding(FullyShardedDataParallelPlugin(), precision, is_quantized=recipe.backbone.quantization is not None)
    if recipe.backbone.quantization is not None:
        check_kind(recipe.backbone.quantization)
        not_checked += [] if can_quantize() else ["4-bit weights: bitsandbytes is not installed here"]
    with taken_for_an_id(recipe.backbone.path):
        backbone = build_backbone(recipe.backbone.path, dtype=_dtype(recipe), **where_of(recipe.backbone))
    model = attached(recipe, backbone, with_weights=False)
    check_together(model, objective, training)
    check_metric(objective, training)
    freeze_unread_head(model, objective)
    data, longest, notes = _look_at_data(recipe, model, objective, training.train_batch_size)
    not_checked += notes
    steps = _steps(training, data["rows"])
    chosen, settings = chosen_optimizer(training, model)
    check_optimization(training, lambda: chosen([torch.nn.Parameter(torch.zeros(1))], **settings), steps["total"] or 1)
    found = {
        "backbone": recipe.backbone.path,
        "family": model.spec.model_type,
        "mask_token_id": model.mask_token_id,
        "parameters": model.num_parameters(),
        "trainable_parameters": _trainable(model),
        "data": data,
        "steps": steps,
    }
    length = recipe.data.max_length or longest
    if length is None:
        not_checked.append("memory: the length of a row is unknown; set `data.max_length`")
        return found | {"memory_gb": None, "not_checked": not_checked}, training.process_index == 0
    memory, reason = _memory(model, objective, training, recipe, length)
    not_checked += [f"memory of a step: {reason}"] if reason else []
    return found | {"memory_gb": memory, "not_checked": not_checked}, training.process_index == 0


def _arguments_on_any_machine(recipe: Recipe, source: Path) -> tuple[PrismTrainingArguments, list[str]]:
    """transformers refuses `bf16` where there is no accelerator, and a recipe is often looked at on such a machine."""
    if torch.accelerator.is_available() or recipe.training.get("use_cpu"):
        return training_arguments(recipe, source), []
    on_cpu = replace(recipe, training={**recipe.training, "use_cpu": True})
    return training_arguments(on_cpu, source), ["the accelerator: this machine has none"]


def _dtype(recipe: Recipe) -> str | None:
    quantised = recipe.backbone.quantization is not None
    return recipe.backbone.dtype or ("bfloat16" if quantised else None)  # as load_backbone has it


def _trainable(model: PrismModel) -> dict[str, int]:
    head = sum(parameter.numel() for parameter in model.quality_head.parameters() if parameter.requires_grad)
    others = model.num_parameters(only_trainable=True) - head
    return {"backbone" if model.prism_config.train_backbone else "adapter": others, "head": head}


def _look_at_data(
    recipe: Recipe, model: PrismModel, objective: Objective, batch_size: int
) -> tuple[dict[str, Any], int | None, list[str]]:
    """Counts, a prepared sample's figures, its longest row in tokens, and what could not be looked at."""
    try:
        rows, eval_rows = raw_rows(recipe.data, objective, with_history=bool(recipe.attach.head_history))
    except UnreachableDataError as error:
        return {"path": recipe.data.path, "rows": None}, None, [f"data and steps: {error}"]
    found = {"path": recipe.data.path, "rows": len(rows), "eval_rows": 0 if eval_rows is None else len(eval_rows)}
    found["columns"] = given_columns(rows)
    if model.tokenizer is None and "input_ids" not in {*rows.column_names, *recipe.data.columns}:
        return found, None, [f"tokens of the data: {recipe.backbone.path} holds no tokenizer"]
    of_training, of_evaluation = origins_of(recipe.data)
    sample = _prepared_sample(rows, recipe, model, of_training)
    if eval_rows is not None:
        _prepared_sample(eval_rows, recipe, model, of_evaluation)
    collate = collator_of(model)
    for start in range(0, len(sample), batch_size):  # rows that cannot be one batch
        collate([sample[index] for index in range(start, min(start + batch_size, len(sample)))])
    maskable = [sum(row) for row in sample["maskable"]]
    found |= {"rows_looked_at": len(sample), "longest_row": longest_row(sample)}
    found["maskable_share"] = round(sum(maskable) / sum(map(len, sample["input_ids"])), 4)
    return found, longest_row(sample), []


def _prepared_sample(rows: datasets.Dataset, recipe: Recipe, model: PrismModel, origin: Origin) -> datasets.Dataset:
    sample = rows.select(range(min(SAMPLE_ROWS, len(rows))))
    how: dict[str, Any] = {"mask_token_id": model.mask_token_id, "settings": recipe.data, "origin": origin}
    return as_prepared(prepare_rows(sample, model.tokenizer, with_history=wants_history(model), **how), model, origin)


def _steps(training: PrismTrainingArguments, rows: int | None) -> dict[str, int | None]:
    per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    per_epoch = None if rows is None else rows // rows_per_step(rows, training)
    total = training.max_steps if training.max_steps > 0 else per_epoch and math.ceil(training.num_train_epochs * per_epoch)
    return {"processes": training.world_size, "rows_per_step": per_step, "per_epoch": per_epoch, "total": total}


def _memory(
    model: PrismModel, objective: Objective, training: PrismTrainingArguments, recipe: Recipe, length: int
) -> tuple[Mapping[str, float | None], str]:
    mixed = {True: torch.bfloat16} if training.bf16 else {True: torch.float16}
    shape = StepShape(
        training.train_batch_size,
        length,
        masked_share=getattr(objective.corruptor, "t_max", 1.0),
        autocast=mixed.get(training.bf16 or training.fp16),
        four_bit=recipe.backbone.quantization is not None,
    )
    estimate = estimate_memory(model, shape, objective)
    parts = estimate.in_gb()
    needed = parts["total_checkpointed" if training.activation_checkpointing else "total"]
    return {**parts, "needed": needed}, estimate.not_estimated


def dry_run_table(found: Mapping[str, Any]) -> str:
    """Lay the findings out for people, one a line, with what could not be checked at the end."""
    lines = []
    for name, value in found.items():
        if name == "not_checked":
            continue
        parts = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
        lines += list(parts.items())
    width = max(len(name) for name, _ in lines)
    told = [f"{name:<{width}}  {_readable(value)}" for name, value in lines]
    return "\n".join([*told, *(f"not checked: {one}" for one in found["not_checked"])])


def _readable(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "unknown" if value is None else str(value)
