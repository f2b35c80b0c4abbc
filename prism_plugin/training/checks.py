"""What has to fit together before a step is made: model, objective, arguments and data."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import datasets
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, get_scheduler
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.utils import logging

from prism_plugin.backbones import max_row_length, vocab_size_of
from prism_plugin.backbones.quantization import packed_layers
from prism_plugin.data import PrismCollator, check_prepared, id_range, longest_row, prepare_rows, require_list_of_rows
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.modeling.reopening import reread_config
from prism_plugin.modeling.texts import pad_token_id
from prism_plugin.modeling.trial_save import require_saveable
from prism_plugin.modeling.wrapping import offloaded_weights
from prism_plugin.training.arguments import PrismTrainingArguments
from prism_plugin.training.meters import figures_of
from prism_plugin.training.objective import Objective

logger = logging.get_logger(__name__)


def check_together(model: PrismModel, objective: Objective, args: PrismTrainingArguments) -> None:
    """Refuse settings under which something would learn nothing, unlearn, or be ignored.

    Raises:
        ConfigurationError: If model, objective and arguments cannot go together.
        BackboneError: If the backbone is saved with each checkpoint, and transformers refuses its config.
    """
    if model.holds_own_backbone:
        require_saveable(model.plain_backbone)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        way = "load it by `PrismModel.from_pretrained(..., is_trainable=True)`"
        raise ConfigurationError(
            "There is nothing to train in this model, since all of its weights are frozen; "
            f"{'let those that shall learn be trained by `requires_grad_()`' if model.loaded_from is None else way}."
        )
    check_metric(objective, args)
    learning = any(parameter.requires_grad for parameter in model.backbone.parameters())
    of_language = [term for term in objective.terms if not term.reads_quality]
    for term in of_language:
        if not learning and term.weight:
            raise ConfigurationError(
                f"The backbone is frozen, so the {term.name} term cannot teach it anything, but `{term.name}_weight` is "
                f"{term.weight}; set it to 0, or attach with `lora` or `train_backbone`."
            )
    if model.prism_config.train_backbone and not any(term.weight for term in of_language):
        weights = " and ".join(f"`{term.name}_weight: 0`" for term in of_language) or "no term of the language model"
        raise ConfigurationError(
            f"`train_backbone` with {weights} would unlearn the language model, since only the quality head's term "
            "is left; give it a weight, or use `lora`."
        )
    if args.head_learning_rate is not None and not objective.reads_quality:
        raise ConfigurationError(
            f"`head_learning_rate` {args.head_learning_rate} would be ignored, since no term of {objective.title} reads the "
            "quality head; leave it out."
        )
    if isinstance(model.backbone, PeftModel):
        reread_config(model.backbone)
    offloaded = offloaded_weights(model.plain_backbone)
    if offloaded and len(getattr(model, "hf_device_map", ())) < 2:
        raise ConfigurationError(
            "Training beside offloaded weights needs a backbone with a `device_map` of several entries, which Trainer leaves "
            f"where they are, but this one has none and {offloaded[0]} is offloaded; load it by "
            "`from_pretrained(..., device_map=...)`, or without offloading."
        )
    packed = packed_layers(model.plain_backbone) if learning else []
    if packed:
        raise ConfigurationError(
            f"LoRA needs 4-bit weights that let gradients through, but {len(packed)} of the layers were called in evaluation "
            f"mode on a CPU for which bitsandbytes then packs their weights: {', '.join(packed[:3])}; load the backbone anew, "
            "and train it first."
        )
    dropout = max(
        (getattr(lora, "lora_dropout", 0.0) for lora in getattr(model.backbone, "peft_config", {}).values()), default=0
    )
    if args.activation_checkpointing and dropout:
        raise ConfigurationError(
            f"With `activation_checkpointing` dropout is off in the whole step, so a `lora_dropout` of {dropout} would be "
            "ignored; set it to 0, or train without checkpointing."
        )


def freeze_unread_head(model: PrismModel, objective: Objective) -> None:
    """Freeze a head that no term reads, and say so: it would get no gradient, which DDP takes for an error."""
    if objective.reads_quality or not any(one.requires_grad for one in model.quality_head.parameters()):
        return
    model.quality_head.requires_grad_(False)
    logger.warning(f"No term of {objective.title} reads the quality head, so it is frozen and stays as it is.")


def check_metric(objective: Objective, args: PrismTrainingArguments) -> None:
    """Refuse to look for the best checkpoint by a figure that the objective does not give.

    Raises:
        ConfigurationError: If `metric_for_best_model` is none of them.
    """
    best, known = (args.metric_for_best_model or "loss").removeprefix("eval_"), figures_of(objective)
    if best not in known:
        raise ConfigurationError(
            f"`metric_for_best_model` must be one of {', '.join(known)}, which {objective.title} measures, got {best!r}."
        )


def chosen_optimizer(
    args: PrismTrainingArguments, model: nn.Module, given: tuple[type[Optimizer], dict[str, Any]] | None = None
) -> tuple[type[Optimizer], dict[str, Any]]:
    """The optimizer's class and settings: those that were given, or those that the arguments name.

    Raises:
        ConfigurationError: If it would choose its own groups of parameters.
        ImportError: If it needs a package that is not installed.
    """
    chosen, settings = given or Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]  # any module
    if is_optimizer_factory(chosen) or {"params", "model", "optimizer_dict"} & set(settings):
        raise ConfigurationError(
            f"`optim: {args.optim.value}` chooses its own parameter groups, so the head cannot have its learning rate; use "
            "another, such as adamw_torch."
        )
    return chosen, settings


def check_optimization(
    args: PrismTrainingArguments, make_optimizer: Callable[[], Optimizer], num_steps: int, *, with_schedule: bool = True
) -> None:
    """Build the optimizer and the schedule of the learning rate, and keep neither.

    Raises:
        ConfigurationError: If one of them cannot be built.
    """
    try:
        optimizer = make_optimizer()
        if with_schedule:
            get_scheduler(
                args.lr_scheduler_type,
                optimizer=optimizer,
                num_warmup_steps=args.get_warmup_steps(num_steps),
                num_training_steps=num_steps,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]  # a dict once Trainer read it
            )
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"`optim: {args.optim.value}` with `lr_scheduler_type: {args.lr_scheduler_type.value}` cannot be used as it is "
            f"set: {error}"
        ) from error


def collator_of(model: PrismModel) -> PrismCollator:
    """The collator that suits a model: its padding token, and none of it where the model takes no attention mask."""
    return PrismCollator(pad_token_id=pad_token_id(model), equal_lengths=model.spec.attention_mask == "none")


def rows_per_step(rows: int, args: PrismTrainingArguments) -> int:
    """Rows that one optimizer step takes, over accumulation and processes.

    Raises:
        ConfigurationError: If the training data does not fill a step.
    """
    wanted = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if rows < wanted:
        raise ConfigurationError(
            f"A step needs {wanted} rows (batch size times accumulation steps times processes), but the training "
            f"data has {rows}; lower the batch size or add data."
        )
    return wanted


def check_recorded(objective: Objective, columns: Collection[str], name: str) -> None:
    """Refuse recorded drafts that the objective would ignore, and rows without those that it reads.

    Args:
        objective: Reads them if it says so by `reads_drafts`.
        columns: Of the rows.
        name: What the rows are called in errors.

    Raises:
        DataFormatError: If one has `draft_ids` and the other has no use for it, or the other way round.
    """
    reads, title = objective.reads_drafts, objective.title
    if reads and "draft_ids" not in columns:
        raise DataFormatError(
            f"{title[0].upper()}{title[1:]} learns from recorded drafts, the column `draft_ids`, but `{name}` has none; record "
            "them with a sampler, or train with the objective `prism`, which makes its own."
        )
    if not reads and "draft_ids" in columns:
        raise DataFormatError(
            f"`{name}` has recorded drafts, the column `draft_ids`, which {title} would ignore; train with "
            "the objective `prism_recorded`, or drop the column."
        )


def _columns(rows: Any) -> Collection[Collection[str]]:
    """The sets of columns that rows have: those of a list may differ, of other data sets one row stands for all."""
    return {frozenset(row) for row in rows} if isinstance(rows, list | tuple) else [rows[0].keys()]


def as_prepared(rows: Any, model: PrismModel, name: str, objective: Objective | None = None) -> Any:
    """Prepare raw rows, and check that the model can read the longest one.

    Args:
        rows: Raw or prepared rows, or any data set of prepared rows, whose lengths are then not checked; None stays None.
        model: Whose tokenizer and positions count.
        name: What the rows are called in errors.
        objective: What learns from them, where something does; recorded drafts are there for it, or not at all.

    Raises:
        DataFormatError: If there is no row, one cannot be used, one is longer than the model has positions for, or
            objective and recorded drafts do not go together.
    """
    if rows is None:
        return None
    _require_rows(rows, name)
    if not len(rows):
        raise DataFormatError(f"`{name}` holds no row; pass None or give it at least one.")
    whole = isinstance(rows, datasets.Dataset | list | tuple)
    if not whole:
        check_prepared(rows[0], name)
    if objective is not None:
        for columns in _columns(rows):
            check_recorded(objective, columns, name)
    if whole and "example_id" not in rows[0]:
        rows = prepare_rows(rows, model.tokenizer, mask_token_id=model.mask_token_id)
    if whole:
        check_prepared(rows[0], name)
    limit = max_row_length(model.plain_backbone)
    if whole and limit is not None and longest_row(rows) > limit:
        raise DataFormatError(
            f"A row of `{name}` must have at most {limit} tokens, as many as {model.spec.model_type} has positions for, found "
            f"{longest_row(rows)}; set `max_length`."
        )
    if whole:
        _check_vocabulary(rows, model, name)
        _check_visible(rows, model, name)
    return rows


def _require_rows(rows: Any, name: str) -> None:
    """Refuse what is no data set that can be read by index: files, dicts of splits, streams."""
    if isinstance(rows, list | tuple | str | bytes | Mapping):
        require_list_of_rows(rows, name)
    elif not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise DataFormatError(
            f"`{name}` must have a length and be read by index, since rows are drawn in another order each epoch, but "
            f"{type(rows).__name__} is not; make a list of its rows."
        )


def _check_visible(rows: Any, model: PrismModel, name: str) -> None:
    if not model.spec.needs_visible_token:
        return
    index = next((index for index, row in enumerate(rows) if all(row["maskable"])), None)
    if index is not None:
        raise DataFormatError(
            f"Each row of `{name}` must hold a token that is never masked, since a {model.spec.model_type} has no logits for "
            f"masks alone, but row {index} is maskable throughout; add special tokens, or give `maskable`."
        )


def _check_vocabulary(rows: Any, model: PrismModel, name: str) -> None:
    vocabulary, (smallest, largest) = vocab_size_of(model.get_output_embeddings()), id_range(rows)
    if smallest < 0 or largest >= vocabulary:
        raise DataFormatError(
            f"The tokens of `{name}` must lie in the model's vocabulary, 0 to {vocabulary - 1}, found "
            f"{smallest if smallest < 0 else largest}; use the tokenizer that belongs to the model."
        )
