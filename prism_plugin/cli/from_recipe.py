"""A recipe's sections -> the objects that a run is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import get_reporting_integration_callbacks

from prism_plugin.backbones import get_backbone_spec, load_tokenizer
from prism_plugin.cli.recipe import CONFIG_FILES, AttachSection, BackboneSection, DataSection, Recipe
from prism_plugin.data import ROW_NUMBER, Origin, check_columns, given_columns, read_rows
from prism_plugin.errors import BackboneError, ConfigurationError, DataFormatError, PrismError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.config_file import require_same_backbone
from prism_plugin.modeling.persistence import read_stored
from prism_plugin.modeling.places import require_apart
from prism_plugin.reader import naming
from prism_plugin.training import Objective, PrismTrainingArguments
from prism_plugin.training.given_rows import check_recorded


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


def raw_rows(
    data: DataSection, objective: Objective, *, with_history: bool
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Read the rows to train on, and those to evaluate on if there are any; `with_history`, a fresh head reads that of drafts.

    Raises:
        DataFormatError: If they cannot be read, none are left to train on, their columns fit no kind of row or are not read, or
            the objective and their recorded drafts do not go together.
    """
    rows, eval_rows = _train_and_eval(data)
    for origin, part in zip(origins_of(data), (rows, eval_rows), strict=True):
        if part is not None:
            check_columns(given_columns(part), data)
            check_recorded(objective, {*part.column_names, *data.columns}, origin, with_history=with_history)
    return rows, eval_rows


def origins_of(data: DataSection) -> tuple[Origin, Origin]:
    """What the rows to train on, and those to evaluate on, are called in messages: where they were read."""
    return Origin(data.path, counted=True), Origin(data.eval_path or data.path, counted=True)


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


def check_processes(training: PrismTrainingArguments, source: Path) -> None:
    """Refuse to share weights out over processes where there is one.

    Raises:
        ConfigurationError: If `fsdp` is set and nothing else was started.
    """
    if training.fsdp and training.world_size == 1:
        raise ConfigurationError(
            f"{source}: `training.fsdp` shares the weights out over processes, and this is the only one; start several with "
            "`accelerate launch -m prism_plugin.cli.train`, or leave it out."
        )


def check_output_dir(recipe: Recipe, source: Path) -> None:
    """Refuse an `output_dir` that would write to what is read.

    Raises:
        ConfigurationError: If it is, holds, or lies in the folder of the backbone or of the adapter to start from, or holds the
            data or the recipe.
    """
    reads: dict[str, str | Path | None] = {"the recipe": source, "the folder of the backbone": recipe.backbone.path}
    reads |= {"the data": recipe.data.path, "the evaluation data": recipe.data.eval_path}
    reads |= {"the adapter to start from": recipe.attach.adapter}
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
    if section.quantization is not None and recipe.attach.lora is None and recipe.attach.adapter is None:
        raise ConfigurationError(
            f"{source}: `backbone.quantization: {section.quantization}` leaves 4-bit weights, which cannot be trained; add "
            "`attach.lora`, or leave quantization out."
        )


def where_of(section: BackboneSection) -> dict[str, Any]:
    """The revision, and whether code may run: what every loader of the backbone's repository is told."""
    return {"revision": section.revision, "trust_remote_code": section.trust_remote_code}


def attached(recipe: Recipe, backbone: PreTrainedModel, *, with_weights: bool = True) -> PrismModel:
    """Attach the head, and LoRA if asked for, to a backbone, or those of the adapter that the recipe starts from.

    The tokenizer is the adapter's, or the one that lies beside the backbone.

    Args:
        recipe: What `load_recipe` gave.
        backbone: The recipe's.
        with_weights: Read the adapter's weights too, and not only its settings.

    Raises:
        ConfigurationError: If the adapter's folder holds a backbone too.
        StoredStateError: If it is none, is damaged, or belongs to another backbone.
    """
    tokenizer = load_tokenizer(recipe.backbone.path, **where_of(recipe.backbone))
    if recipe.attach.adapter is not None:
        return _of_adapter(recipe.attach.adapter, backbone, tokenizer, with_weights=with_weights)
    return attach_quality_head(backbone, _prism_config(recipe.attach), lora=_lora(recipe.attach), tokenizer=tokenizer)


def _of_adapter(
    adapter: str, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, *, with_weights: bool
) -> PrismModel:
    stored = read_stored(adapter)
    if stored.holds_backbone:
        raise ConfigurationError(
            f"`attach.adapter` must be the folder of a head and maybe LoRA, but {adapter} holds a trained or merged backbone "
            "too; train it on from Python, by `PrismModel.from_pretrained(..., is_trainable=True)`."
        )
    if with_weights:
        model = PrismModel.from_pretrained(stored.folder, backbone, is_trainable=True)
    else:
        require_same_backbone(stored.config, stored.folder, backbone, get_backbone_spec(backbone))
        if stored.adapter is not None:
            stored.adapter.inference_mode = False  # it was written for those who load it to use it
        model = attach_quality_head(backbone, replace(stored.config, backbone_name=None), lora=stored.adapter)
    model.tokenizer = model.tokenizer or load_tokenizer(stored.folder) or tokenizer
    return model


def _prism_config(attach: AttachSection) -> PrismConfig:
    return PrismConfig(
        mask_token_id=attach.mask_token_id,
        head=attach.head,
        head_hidden_size=attach.head_hidden_size,
        head_blocks=attach.head_blocks,
        head_num_heads=attach.head_num_heads,
        head_taps=None if attach.head_taps is None else tuple(attach.head_taps),
        head_history=tuple(attach.head_history or ()),
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
