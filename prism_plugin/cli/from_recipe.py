"""A recipe's sections -> the objects that a run is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.integrations import get_reporting_integration_callbacks

from prism_plugin.backbones import load_tokenizer
from prism_plugin.cli.recipe import CONFIG_FILES, AttachSection, BackboneSection, DataSection, Recipe
from prism_plugin.data import ROW_NUMBER, check_columns, given_columns, read_rows
from prism_plugin.errors import BackboneError, ConfigurationError, DataFormatError, PrismError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.places import require_apart
from prism_plugin.reader import naming
from prism_plugin.training import Objective, PrismTrainingArguments
from prism_plugin.training.checks import check_recorded


def training_arguments(recipe: Recipe, source: Path) -> PrismTrainingArguments:
    """Build the training arguments.

    Raises:
        ConfigurationError: If transformers refuses one of them.
        PrismError: What we refuse ourselves, as it came.
    """
    try:
        with naming(f"{source}: training"):
            arguments = PrismTrainingArguments(**recipe.training)
        # a tracker that is unknown, or not installed, is found before anything is loaded
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()
        return arguments
    except PrismError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError) as error:  # how TrainingArguments refuses values
        raise ConfigurationError(f"{source}: training: {' '.join(str(error).split())}") from error


def raw_rows(data: DataSection, objective: Objective) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Read the rows to train on, and those to evaluate on if there are any.

    Raises:
        DataFormatError: If they cannot be read, none are left to train on, their columns fit no kind of row or are not read, or
            the objective and their recorded drafts do not go together.
    """
    rows, eval_rows = _train_and_eval(data)
    for name, part in (("train_dataset", rows), ("eval_dataset", eval_rows)):
        if part is not None:
            check_columns(given_columns(part), data)
            check_recorded(objective, {*part.column_names, *data.columns}, name)
    return rows, eval_rows


def _train_and_eval(data: DataSection) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    rows = read_rows(data.path, split=data.split, revision=data.revision)
    if data.eval_path or data.eval_split:
        same = data.eval_path is None
        path, revision = (data.path, data.revision) if same else (data.eval_path, None)
        return rows, read_rows(path, split=data.eval_split, revision=revision)
    if data.eval_share is None:
        return rows, None
    held_out = max(1, round(len(rows) * data.eval_share))
    if held_out >= len(rows):
        raise DataFormatError(
            f"`eval_share` {data.eval_share} of {len(rows)} rows leaves none to train on; lower it or add data."
        )
    if ROW_NUMBER not in rows.column_names:
        rows = rows.add_column(ROW_NUMBER, list(range(len(rows))))
    parts = rows.train_test_split(test_size=held_out, seed=0)
    return parts["train"], parts["test"]


def check_evaluation(recipe: Recipe, training: PrismTrainingArguments, source: Path) -> None:
    """Refuse an evaluation that has no rows.

    Raises:
        ConfigurationError: If `eval_strategy` is set and no evaluation rows are named.
    """
    data = recipe.data
    if training.eval_strategy != "no" and not (data.eval_path or data.eval_split or data.eval_share):
        raise ConfigurationError(
            f"{source}: `eval_strategy: {training.eval_strategy.value}` needs `data.eval_share` or `eval_path`."
        )


def check_output_dir(recipe: Recipe, source: Path) -> None:
    """Refuse an `output_dir` that would write to what is read.

    Raises:
        ConfigurationError: If it is, holds, or lies in the backbone's folder, or holds the data or the recipe.
    """
    reads: dict[str, str | Path | None] = {"the recipe": source, "the folder of the backbone": recipe.backbone.path}
    reads |= {"the data": recipe.data.path, "the evaluation data": recipe.data.eval_path}
    reads |= {name: recipe.training[name] for name in CONFIG_FILES if isinstance(recipe.training.get(name), str)}
    require_apart(Path(recipe.training["output_dir"]), reads, f"{source}: `output_dir`")


@contextmanager
def taken_for_an_id(path: str) -> Iterator[None]:
    """Say of a backbone that cannot be loaded that it was looked for on this disk first.

    Raises:
        BackboneError: If one is raised within.
    """
    try:
        yield
    except BackboneError as error:
        if Path(path).is_absolute():
            raise
        raise BackboneError(
            f"There is no folder {path!r} where paths count from (the recipe's folder, or on the command line this one), so it "
            f"was taken for an id on the Hub: {error}"
        ) from error


def check_backbone_section(recipe: Recipe, source: Path) -> None:
    """Refuse what can be seen before anything is loaded.

    Raises:
        ConfigurationError: If the dtype is none of torch's, or nothing of a quantised backbone could be trained.
    """
    section = recipe.backbone
    if section.dtype is not None and not isinstance(getattr(torch, section.dtype, None), torch.dtype):
        raise ConfigurationError(f"{source}: `backbone.dtype` must be a torch dtype such as bfloat16, found {section.dtype!r}.")
    if section.quantization is not None and recipe.attach.lora is None:
        raise ConfigurationError(
            f"{source}: `backbone.quantization: {section.quantization}` leaves 4-bit weights, which cannot be trained; add "
            "`attach.lora`, or leave quantization out."
        )


def where_of(section: BackboneSection) -> dict[str, Any]:
    """The revision, and whether code may run: what every loader of the backbone's repository is told."""
    return {"revision": section.revision, "trust_remote_code": section.trust_remote_code}


def attached(recipe: Recipe, backbone: PreTrainedModel) -> PrismModel:
    """Attach the head, and LoRA if asked for, to a backbone; the tokenizer is the one that lies beside it."""
    tokenizer = load_tokenizer(recipe.backbone.path, **where_of(recipe.backbone))
    return attach_quality_head(backbone, _prism_config(recipe.attach), lora=_lora(recipe.attach), tokenizer=tokenizer)


def _prism_config(attach: AttachSection) -> PrismConfig:
    return PrismConfig(
        mask_token_id=attach.mask_token_id,
        head=attach.head,
        head_hidden_size=attach.head_hidden_size,
        train_backbone=attach.train_backbone,
        logits_alignment=attach.logits_alignment,
        base_rate=attach.base_rate,
    )


def _lora(attach: AttachSection) -> LoraConfig | None:
    if attach.lora is None:
        return None
    lora = attach.lora
    scale: Any = lora.alpha  # declared as an integer, and only multiplied by
    return LoraConfig(r=lora.r, lora_alpha=scale, lora_dropout=lora.dropout, target_modules=lora.targets)
