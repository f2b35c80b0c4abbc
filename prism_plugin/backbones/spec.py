"""BackboneSpec: everything that prism_plugin has to know about a family of models, and the table of known families."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prism_plugin.errors import BackboneError, MaskTokenError

Setting = bool | int | float | str | None


@dataclass(frozen=True)
class BackboneSpec:
    """One family of masked diffusion language models. Frozen data: no code asks for a model's class.

    Attributes:
        model_type: `config.model_type` of the family.
        final_hidden_at: Dotted path, from the model that has the LM head, of the module whose input is the final hidden
            state. The quality head reads that input, and from there on only the requested rows are computed. So it is
            the LM head itself, or the transform in front of it.
        lora_target_modules: Leaf names that get LoRA when a PEFT config leaves `target_modules` out.
        logits_alignment: "same_position" when logits at position i are about token i, "next_token" when they are about
            token i + 1, as in models adapted from autoregressive ones (Dream).
        mask_token_id: Id of the mask token when neither config nor tokenizer tells; None when there is no such rule.
        attention_mask: "2d" when the model honours a [batch, length] mask, "none" when it takes none: then it is never
            passed, and padding is seen by the model as it was in its pretraining.
        auto_class: Name of the transformers auto class that loads the family with its LM head.
        causal_by_default: The class attends to the left only, unless `config.is_causal` is False.
        settings_while_attached: Pairs of a dotted attribute path, from the model, and the value it must have while the
            quality head is attached; `PrismModel.detach` puts the old values back.
        reference: Where the facts come from.
    """

    model_type: str
    final_hidden_at: str
    lora_target_modules: tuple[str, ...]
    logits_alignment: Literal["same_position", "next_token"] = "same_position"
    mask_token_id: int | None = None
    attention_mask: Literal["2d", "none"] = "2d"
    auto_class: str = "AutoModelForMaskedLM"
    causal_by_default: bool = False
    settings_while_attached: tuple[tuple[str, Setting], ...] = ()
    reference: str = ""

    def __post_init__(self) -> None:
        if not self.model_type or not self.final_hidden_at or not self.lora_target_modules:
            raise BackboneError(
                "A BackboneSpec needs `model_type`, `final_hidden_at` and at least one name in `lora_target_modules`, got "
                f"{self.model_type!r}, {self.final_hidden_at!r} and {self.lora_target_modules!r}."
            )
        if self.logits_alignment not in ("same_position", "next_token"):
            raise BackboneError(f"`logits_alignment` must be 'same_position' or 'next_token', got {self.logits_alignment!r}.")
        if self.attention_mask not in ("2d", "none"):
            raise BackboneError(f"`attention_mask` of a BackboneSpec must be '2d' or 'none', got {self.attention_mask!r}.")


_SPECS: dict[str, BackboneSpec] = {}


def register_backbone(spec: BackboneSpec, *, replace: bool = False) -> None:
    """Make a family known by its `model_type`, for this process.

    Args:
        spec: The family.
        replace: Allow another spec of the same `model_type` to be replaced. The same spec twice is always fine.

    Raises:
        BackboneError: If another spec has that `model_type` and `replace` is False.
    """
    if not replace and _SPECS.get(spec.model_type, spec) != spec:
        raise BackboneError(
            f"A backbone of model type {spec.model_type!r} is registered already with other values; "
            "pass `replace=True` to replace it."
        )
    _SPECS[spec.model_type] = spec


def get_spec_by_model_type(model_type: str) -> BackboneSpec:
    """Return the registered spec of a model type.

    Raises:
        BackboneError: If none is registered.
    """
    if model_type not in _SPECS:
        near = get_close_matches(model_type, _SPECS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BackboneError(
            f"No BackboneSpec is registered for model type {model_type!r}.{hint} Known: {', '.join(sorted(_SPECS))}; "
            "describe another family with `register_backbone(BackboneSpec(model_type=..., final_hidden_at=..., ...))`."
        )
    return _SPECS[model_type]


def get_backbone_spec(backbone: PreTrainedModel) -> BackboneSpec:
    """Return the spec that fits a live model, by its `config.model_type`.

    Raises:
        BackboneError: If the object has no `config.model_type`, or no spec is registered for it.
    """
    model_type = getattr(getattr(backbone, "config", None), "model_type", None)
    if not isinstance(backbone, nn.Module) or not model_type:
        raise BackboneError(
            "A backbone must be a transformers model with `config.model_type`, "
            f"got {type(backbone).__name__}; load one with `load_backbone(...)`."
        )
    return get_spec_by_model_type(model_type)


def resolve_mask_token_id(
    argument: int | None,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    spec: BackboneSpec,
) -> tuple[int, str]:
    """Find the mask token id: argument, then model config, then tokenizer, then spec.

    Args:
        argument: `PrismConfig.mask_token_id`.
        config: The backbone's config.
        tokenizer: The tokenizer in use, if any.
        spec: The backbone's family.

    Returns:
        The id, in [0, vocabulary), and which source gave it.

    Raises:
        MaskTokenError: If no source tells, the id is outside the vocabulary, or the tokenizer has another mask token.
    """
    from_tokenizer = None if tokenizer is None else tokenizer.mask_token_id
    sources = (
        ("PrismConfig.mask_token_id", argument),
        ("the model's config.mask_token_id", getattr(config, "mask_token_id", None)),
        ("the tokenizer's mask_token_id", from_tokenizer),
        (f"the BackboneSpec of {spec.model_type!r}", spec.mask_token_id),
    )
    found = next(((source, value) for source, value in sources if value is not None), None)
    if found is None:
        raise MaskTokenError(
            f"No mask token id is known for this {spec.model_type!r} model: its config and tokenizer have none; "
            "pass `PrismConfig(mask_token_id=...)`."
        )
    source, mask_token_id = found
    vocab_size = config.get_text_config().vocab_size
    if isinstance(mask_token_id, bool) or not isinstance(mask_token_id, int) or not 0 <= mask_token_id < vocab_size:
        raise MaskTokenError(
            f"The mask token id must be an integer in [0, {vocab_size}), the model's vocabulary, but {source} says "
            f"{mask_token_id!r}; pass the right one as `PrismConfig(mask_token_id=...)`."
        )
    if from_tokenizer is not None and from_tokenizer != mask_token_id:
        raise MaskTokenError(
            f"{source[0].upper()}{source[1:]} says that the mask token is {mask_token_id}, but the tokenizer's mask token "
            f"{tokenizer.mask_token!r} is {from_tokenizer}; pass the tokenizer that belongs to this model."
        )
    return mask_token_id, source
