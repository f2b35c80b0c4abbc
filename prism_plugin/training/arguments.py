"""Arguments of `PrismTrainer`."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from prism_plugin.core.validation import require_seed
from prism_plugin.errors import ConfigurationError

# Settings of `TrainingArguments` that another value would break or that nothing here would read: name -> value, reason.
_FIXED = {
    "remove_unused_columns": (False, "the objective reads columns that the model's forward does not name"),
    "dataloader_drop_last": (False, "evaluation would lose rows; an epoch of training has whole batches anyway"),
    "label_smoothing_factor": (0.0, "the objective has no `labels`"),
    "label_names": (None, "the objective has no `labels`"),
    "prediction_loss_only": (False, "evaluation measures the quality head's predictions"),
    "batch_eval_metrics": (False, "the quality's AUROC is not a mean over batches"),
    "eval_do_concat_batches": (True, "the quality's AUROC is not a mean over batches"),
    "use_liger_kernel": (False, "its kernels are for transformers' own classes, which a PrismModel is not"),
    "neftune_noise_alpha": (None, "noise on the embeddings would reach the drafts, which must be what the sampler would write"),
    "logging_nan_inf_filter": (False, "a loss that is NaN or infinite stops the run, and this would hide it"),
    "hub_strategy": (
        "end",
        "of a checkpoint transformers uploads neither the head nor its card, but a pickle; the result is uploaded at the end",
    ),
    "train_sampling_strategy": ("random", "the order of rows must be a function of the seed and the epoch alone"),
}
# Whole numbers and the least that each may be: TrainingArguments takes what only fails, or is ignored, when it is used.
_AT_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}  # fmt: skip
# Figures of which less is better, besides losses, which transformers knows.
_LESS_IS_BETTER = ("_ece", "_brier")


@dataclass
class PrismTrainingArguments(TrainingArguments):
    """Everything of `TrainingArguments`, with a second learning rate; what is learnt is the objective's business."""

    head_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of the quality head, which starts from scratch, > 0; `learning_rate` is that of LoRA "
            "or of the backbone. None: the same for both, as the authors' PRISM_llada/train.py has it."
        },
    )
    check_alignment: bool = field(
        default=True,
        metadata={
            "help": "See on the first batch which position logits are about, and refuse to train where it is plainly not that "
            "of the model's spec; False: train all the same, such as a model that is to learn another alignment."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the objective reads columns that the model's forward does not name."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay False: a loss that is NaN or infinite stops the run, and is not hidden."}
    )
    hub_strategy: str = field(
        default="end", metadata={"help": "Must stay end: with `push_to_hub` the result is uploaded, and no checkpoint."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=None,
        metadata={
            "help": "Let DDP look in each step for parameters without a gradient, which takes time. None: where there are any."
        },
    )

    def __post_init__(self) -> None:
        if (self.metric_for_best_model or "").endswith(_LESS_IS_BETTER) and self.greater_is_better is None:
            self.greater_is_better = False  # transformers takes all but losses for scores
        super().__post_init__()
        for name, (value, reason) in _FIXED.items():
            found = getattr(self, name)
            if getattr(found, "value", found) != value:
                raise ConfigurationError(f"`{name}` must be {value!r}, because {reason}; got {found!r}.")
        for name in ("learning_rate", "head_learning_rate"):
            found = getattr(self, name)
            if found is not None and not 0 < found < math.inf:
                raise ConfigurationError(f"`{name}` must be positive and finite, got {found}.")
        for name, least in _AT_LEAST.items():
            found = getattr(self, name)
            if found is not None and found < least:
                raise ConfigurationError(f"`{name}` must be at least {least}, got {found}.")
        for name in ("seed", "data_seed"):
            require_seed(getattr(self, name), name)
        if self.max_steps != -1 and self.max_steps < 1:
            raise ConfigurationError(f"`max_steps` must be at least 1, or -1 for `num_train_epochs`, got {self.max_steps}.")
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise ConfigurationError(f"`num_train_epochs` must be positive, got {self.num_train_epochs}.")
        if self.save_strategy == "steps" and not self.save_steps > 0:
            raise ConfigurationError(
                f"`save_steps` must be positive, got {self.save_steps}; `save_strategy: no` saves at the end."
            )
        if self.data_seed is None:
            self.data_seed = self.seed
        # Batches of a stream differ in length, and could not be put together by one process for all.
        loading: Any = self.accelerator_config  # declared as what it is made of
        if loading.dispatch_batches:
            raise ConfigurationError(
                "`accelerator_config.dispatch_batches` must be false, because each process reads a stream and takes its own "
                "rows; leave it out."
            )
        loading.dispatch_batches = False


def as_prism_arguments(args: Any) -> PrismTrainingArguments:
    """Take transformers' own arguments too: what was changed in them, and our defaults for the rest.

    Raises:
        ConfigurationError: If they are something else, or hold what is refused.
    """
    if isinstance(args, PrismTrainingArguments):
        return args
    if type(args) is not TrainingArguments:
        raise ConfigurationError(
            f"`args` must be PrismTrainingArguments, found {type(args).__name__}; make them, "
            '`PrismTrainingArguments("FOLDER", max_steps=1000, ...)`.'
        )
    untouched = TrainingArguments(args.output_dir, use_cpu=args.use_cpu)
    given = {one.name: getattr(args, one.name) for one in fields(TrainingArguments) if one.init}
    changed = {name: value for name, value in given.items() if value != getattr(untouched, name)}
    return PrismTrainingArguments(**{"output_dir": args.output_dir, "use_cpu": args.use_cpu, **changed})
