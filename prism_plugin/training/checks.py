"""What has to fit together before a step is made: model, objective and arguments. `given_rows` looks at the data."""

from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from prism_plugin.backbones import check_backbone, resolve_mask_token_id
from prism_plugin.backbones.quantization import packed_layers
from prism_plugin.data import PrismCollator
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.modeling.reopening import reread_config
from prism_plugin.modeling.soft_inputs import require_soft_inputs
from prism_plugin.modeling.texts import pad_token_id
from prism_plugin.modeling.trial_save import require_saveable
from prism_plugin.modeling.wrapping import offloaded_weights
from prism_plugin.training.arguments import PrismTrainingArguments
from prism_plugin.training.corruptors import HISTORY_HIDDEN
from prism_plugin.training.meters import figures_of
from prism_plugin.training.objective import Objective

logger = logging.get_logger(__name__)


def require_prism_model(model: Any) -> None:
    """Check that what is to be trained has a quality head.

    Raises:
        ConfigurationError: If it has none.
    """
    if not isinstance(model, PrismModel):
        raise ConfigurationError(
            f"`model` must be a PrismModel, a backbone with a quality head, found {type(model).__name__}; make one by "
            "`attach_quality_head(backbone, ...)`."
        )


def take_tokenizer(model: PrismModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Let a model have the tokenizer that a trainer is given; what it would prepare and save otherwise is said nowhere.

    Raises:
        ConfigurationError: If the model has another one already.
        BackboneError: If the tokenizer does not fit the backbone.
        MaskTokenError: If its mask token is another than the model's.
    """
    if tokenizer is None:
        return
    if model.tokenizer is not None and model.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigurationError(
            "`processing_class` must be the tokenizer of the model, but the model was attached with one of another vocabulary; "
            "leave it out, or attach with it."
        )
    check_backbone(model.plain_backbone, model.spec, tokenizer)
    resolve_mask_token_id(model.mask_token_id, model.config, tokenizer, model.spec)
    model.tokenizer = tokenizer


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
            "is left; give it a weight, or leave `train_backbone` out."
        )
    if learning and not any(term.weight for term in of_language):
        logger.warning(
            f"No term of {objective.title} keeps the language model as it is, but LoRA is trained, so it will fill masks worse "
            "than before; attach without `lora`, or give a term of the language model a weight, such as `diffusion_weight`."
        )
    if args.head_learning_rate is not None and not objective.reads_quality:
        raise ConfigurationError(
            f"`head_learning_rate` {args.head_learning_rate} would be ignored, since no term of {objective.title} reads the "
            "quality head; leave it out."
        )
    _check_history(model, objective)
    if getattr(objective.corruptor, "soft_inputs", False):
        require_soft_inputs(model)
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


def _check_history(model: PrismModel, objective: Objective) -> None:
    """Refuse a head whose history the objective does not know, and a setting of it where no head reads one."""
    hidden = getattr(objective.corruptor, "history_hidden", None)
    reads = model.quality_head.reads_history and objective.reads_quality
    corruptor = type(objective.corruptor).__name__
    if reads and hidden is None:
        raise ConfigurationError(
            f"This head reads its tokens' history ({', '.join(model.prism_config.head_history)}), which {corruptor}, the "
            f"corruptor of {objective.title}, does not know; train it with `prism_recorded` or `prism`, or attach without "
            "`head_history`."
        )
    if reads and hidden == 1:
        raise ConfigurationError(
            "`history_hidden` is 1, so the head would never see a history in training, and read one in samplers; lower it, or "
            "attach without `head_history`."
        )
    if not reads and hidden not in (None, HISTORY_HIDDEN):
        raise ConfigurationError(
            f"`history_hidden` is {hidden}, but no history is read here, so it would change nothing; leave it out, or attach "
            "with `head_history`."
        )


def freeze_unread_head(model: PrismModel, objective: Objective) -> None:
    """Freeze a head that no term reads, and say so: it would get no gradient, which DDP takes for an error."""
    if objective.reads_quality or not any(one.requires_grad for one in model.quality_head.parameters()):
        return
    model.quality_head.requires_grad_(False)
    logger.warning(f"No term of {objective.title} reads the quality head, so it is frozen and stays as it is.")


def check_metric(objective: Objective, args: PrismTrainingArguments, eval_sets: Iterable[str] | None = None) -> None:
    """Refuse to look for the best checkpoint by a figure that the objective does not give.

    Args:
        objective: What is measured.
        args: Name the figure, if any is looked for.
        eval_sets: Names of several sets to evaluate on, which the figures then begin with.

    Raises:
        ConfigurationError: If `metric_for_best_model` is none of them.
    """
    if args.metric_for_best_model is None:
        return
    best, known = args.metric_for_best_model.removeprefix("eval_"), figures_of(objective)
    if eval_sets is not None:
        known = tuple(f"{name}_{figure}" for name in eval_sets for figure in known)
    if best not in known:
        raise ConfigurationError(
            f"`metric_for_best_model` must be one of {', '.join(known)}, which {objective.title} measures, got {best!r}."
        )


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
