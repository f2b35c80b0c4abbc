"""Arguments of `PrismTrainer`."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

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
    "train_sampling_strategy": ("random", "the order of rows must be a function of the seed and the epoch alone"),
}


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
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the objective reads columns that the model's forward does not name."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "False: every trainable parameter gets a gradient in each step, so the search would be wasted time."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (value, reason) in _FIXED.items():
            found = getattr(self, name)
            if getattr(found, "value", found) != value:
                raise ConfigurationError(f"`{name}` must be {value!r}, because {reason}; got {found!r}.")
        for name in ("learning_rate", "head_learning_rate"):
            found = getattr(self, name)
            if found is not None and not found > 0:
                raise ConfigurationError(f"`{name}` must be positive, got {found}.")
        if self.data_seed is None:
            self.data_seed = self.seed
