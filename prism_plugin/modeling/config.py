"""PrismConfig: what defines a quality head and what it was trained on, as it stands in prism_config.json."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prism_plugin.backbones.spec import ALIGNMENTS
from prism_plugin.core.history import HISTORY
from prism_plugin.core.validation import require_int, require_number
from prism_plugin.errors import ConfigurationError, did_you_mean
from prism_plugin.modeling.heads import HEADS, head_settings
from prism_plugin.reader import from_mapping

# Fields of a config, and what builders of heads call them.
HEAD_SETTINGS = {
    "head_hidden_size": "inner_size",
    "head_blocks": "num_blocks",
    "head_num_heads": "num_heads",
    "head_taps": "num_taps",
}


@dataclass(frozen=True)
class PrismConfig:
    """Settings of the quality head. What is None is filled in by `attach_quality_head` and then recorded.

    Attributes:
        mask_token_id: Id of the mask token; None: taken from the model's config, the tokenizer or the spec.
        head: "mlp" (LayerNorm, Linear, GELU, Linear), "linear" (LayerNorm, Linear), "transformer" (blocks of attention and a
            hidden layer), "multi_tap" (reads several layers), or another that is registered.
        head_hidden_size: Width of the head's hidden layers, >= 1; None: the backbone's. Must be None for a head that has none.
        head_blocks: Blocks of a transformer head, >= 1; None: 1. Must be None for other heads.
        head_num_heads: Attention heads of its blocks, >= 1, a divisor of the backbone's width; None: of 64 columns each, or
            fewer where that does not divide it.
        head_taps: Layers whose output a multi_tap head reads besides the final hidden state, from 0, or from the last one at
            -1; it needs one or more. Must be None for other heads.
        head_history: What the head reads of each token's history beside the hidden state, of `HISTORY`: "age",
            "commit_confidence", "times_remasked". Empty or None: nothing.
        train_backbone: Train all weights of the backbone. Impossible together with `lora`.
        base_rate: Quality that an untrained head gives to every token, in (0, 1): the share of right tokens to expect.
        backbone_name: Hub id or folder of the backbone; None: what its config says.
        backbone_revision: Commit of the backbone, or of `base_model`; None: what its config says.
        backbone_model_type: Model type that the backbone must have; None: any.
        backbone_hidden_size: Width that the backbone must have; None: any.
        backbone_vocab_size: Vocabulary that the backbone must have; None: any.
        backbone_resized_from: Vocabulary that the backbone was loaded with, where its embeddings were resized since; None: what
            the config says that it was loaded from.
        objective: Name and settings of the training objective, as the trainer records them.
        quality_temperature: The head's logits are divided by it, > 0; 1 leaves them as trained. Fitted on held-out tokens
            (temperature scaling, arXiv 1706.04599 section 4.2), and not trained with the head.
        quality_bias: Added to the logits after the division (Platt scaling).
        base_model: Hub id that the weights of a backbone in a folder were made from; recorded when they are written there.
        logits_alignment: "same_position" or "next_token", as for BackboneSpec, where this model differs from its family; None:
            as the spec says. Recorded where it is not what the family has by default.
    """

    mask_token_id: int | None = None
    head: str = "mlp"
    head_hidden_size: int | None = None
    head_blocks: int | None = None
    head_num_heads: int | None = None
    head_taps: tuple[int, ...] | None = None
    head_history: tuple[str, ...] = ()
    train_backbone: bool = False
    base_rate: float = 0.9
    backbone_name: str | None = None
    backbone_revision: str | None = None
    backbone_model_type: str | None = None
    backbone_hidden_size: int | None = None
    backbone_vocab_size: int | None = None
    backbone_resized_from: int | None = None
    objective: dict[str, Any] | None = None
    quality_temperature: float = 1.0
    quality_bias: float = 0.0
    base_model: str | None = None
    logits_alignment: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.head, str) or self.head not in HEADS:
            near = did_you_mean(str(self.head), HEADS)
            raise ConfigurationError(
                f"`head` must be one of {', '.join(HEADS)}, got {self.head!r}{near}; import the module that registers it."
            )
        self._check_head()
        for name, minimum in (
            ("mask_token_id", 0), ("head_hidden_size", 1), ("head_blocks", 1), ("head_num_heads", 1),
            ("backbone_hidden_size", 1), ("backbone_vocab_size", 1), ("backbone_resized_from", 1),
        ):  # fmt: skip
            if getattr(self, name) is not None:
                require_int(self, name, minimum=minimum)
        if self.logits_alignment not in (None, *ALIGNMENTS):
            raise ConfigurationError(
                f"`logits_alignment` must be {' or '.join(map(repr, ALIGNMENTS))}, or None for what the family's spec says, "
                f"found {self.logits_alignment!r}."
            )
        if not isinstance(self.train_backbone, bool):
            raise ConfigurationError(f"`train_backbone` must be True or False, found {self.train_backbone!r}.")
        below_one = math.nextafter(1.0, 0.0)
        require_number(self, "base_rate", "strictly between 0 and 1", low=0.0, high=below_one, open_low=True)
        require_number(self, "quality_temperature", "a number above 0", low=0.0, open_low=True)
        require_number(self, "quality_bias", "a finite number", low=-math.inf)

    def _check_head(self) -> None:
        """Refuse settings that this kind of head does not have, and a history that does not exist."""
        self._check_listed()
        has = head_settings(self.head)
        for name, setting in HEAD_SETTINGS.items():
            if getattr(self, name) is not None and setting not in has:
                raise ConfigurationError(
                    f"A {self.head} head has no `{name}`, but it is {getattr(self, name)}; leave it out, or choose another "
                    "`head`."
                )
        if "num_taps" in has and not self.head_taps:
            raise ConfigurationError(
                f"A {self.head} head reads layers, so `head_taps` must name some, such as (0, -1), found {self.head_taps!r}."
            )

    def _check_listed(self) -> None:
        """Check the settings that list something, and make tuples of them: files hold lists."""
        taps, history = self.head_taps, () if self.head_history is None else self.head_history
        if taps is not None:
            if not isinstance(taps, list | tuple) or any(type(tap) is not int for tap in taps):
                raise ConfigurationError(f"`head_taps` must list integers, the numbers of layers, found {taps!r}.")
            if len(set(taps)) < len(taps):
                raise ConfigurationError(f"`head_taps` must name each layer once, found {tuple(taps)}.")
            object.__setattr__(self, "head_taps", tuple(taps))
        listed = isinstance(history, list | tuple)
        if not listed or any(name not in HISTORY for name in history) or len(set(history)) < len(history):
            raise ConfigurationError(f"`head_history` must list some of {', '.join(HISTORY)}, each once, found {history!r}.")
        object.__setattr__(self, "head_history", tuple(history))

    def head_sizes(self) -> dict[str, int]:
        """What a builder of `HEADS` is given of this config, where it is set."""
        taps = None if self.head_taps is None else len(self.head_taps)
        sizes = {setting: getattr(self, name) for name, setting in HEAD_SETTINGS.items()} | {"num_taps": taps}
        return {name: size for name, size in sizes.items() if size is not None}

    @property
    def base_rate_logit(self) -> float:
        """Logit of `base_rate`, where the head's bias starts."""
        return math.log(self.base_rate / (1.0 - self.base_rate))

    def to_dict(self) -> dict[str, Any]:
        """Return every field, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PrismConfig":
        """Build a config from a mapping, refusing every key that is not a field.

        Raises:
            UnknownKeyError: If a key is unknown.
            ConfigurationError: If a value is of another type or out of range.
        """
        return from_mapping(cls, values, source="PrismConfig")
