"""How raw rows become token ids, as settings of a recipe or a call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from prism_plugin.core.validation import require_choice
from prism_plugin.data.columns import BESIDE_IDS, KINDS
from prism_plugin.errors import ConfigurationError


@dataclass(frozen=True)
class DataSettings:
    """How raw rows become token ids. Lengths are in tokens."""

    columns: Mapping[str, str] = field(
        default_factory=dict,
        metadata={"help": "Our column name -> the data's own, where they differ, for example {text: content}."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Longest row, >= 1; None leaves rows as they are. What happens to longer ones says `overlong`."},
    )
    overlong: Literal["truncate", "drop", "error"] = field(
        default="truncate",
        metadata={"help": "A row longer than `max_length` is cut on the right, left out, or refused."},
    )
    pads: Literal["ignored", "supervised"] = field(
        default="ignored",
        metadata={
            "help": "ignored: padding is not seen. supervised: every row is filled to `max_length` with the EOS token, which "
            "the model sees and is trained on, as LLaDA's fine-tuning does (arXiv 2502.09992, section 2.3)."
        },
    )
    append_eos: bool = field(
        default=False,
        metadata={"help": "End each text, or each completion, with the tokenizer's EOS token, maskable."},
    )
    as_chat: bool = field(
        default=False,
        metadata={"help": "Write prompt and completion as a chat of two messages, by the tokenizer's chat template."},
    )
    unread_columns: Literal["refused", "ignored"] = field(
        default="refused",
        metadata={"help": "Columns that nothing reads are refused, but for those that name a row or its source, or ignored."},
    )

    def __post_init__(self) -> None:
        known = {name for names in KINDS.values() for name in names} | set(BESIDE_IDS)
        if unknown := sorted(set(self.columns) - known):
            raise ConfigurationError(f"`columns` may rename {', '.join(sorted(known))}; found {', '.join(unknown)}.")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigurationError(f"`max_length` must be at least 1, got {self.max_length}.")
        for name in ("overlong", "pads", "unread_columns"):
            require_choice(self, name, get_args(get_type_hints(DataSettings)[name]))
        if self.pads == "supervised" and self.max_length is None:
            raise ConfigurationError("`pads: supervised` fills rows to `max_length`, which is not set; set it.")
        if self.overlong != "truncate" and self.max_length is None:
            raise ConfigurationError(f"`overlong: {self.overlong}` compares rows with `max_length`, which is not set; set it.")
