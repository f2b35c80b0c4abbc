"""BackboneSpec: everything that prism_plugin has to know about a family of models, and the table of known families."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prism_plugin.errors import BackboneError, MaskTokenError, did_you_mean

Setting = bool | int | float | str | None
ALIGNMENTS = ("same_position", "next_token")  # what logits may be about
FAMILY = "masked_diffusion_family"  # what a config says of a family whose weights are in a class of another model type
Settings = tuple[tuple[str, Setting], ...]


@dataclass(frozen=True)
class BackboneSpec:
    """One family of masked diffusion language models. Frozen data: no code asks for a model's class.

    Rows of the LM head are gathered in one way for all families, a hook in front of `final_hidden_at`: it works in each of
    them, with remote code and under PEFT, DDP and FSDP, while transformers' own `logits_to_keep` exists in some decoder
    classes only and gives no hidden state to the quality head.

    Attributes:
        model_type: `config.model_type` of the family.
        final_hidden_at: Dotted path, from the model that has the LM head, of the module whose input is the final hidden
            state. The quality head reads that input, and from there on only the requested rows are computed. So it is
            the LM head itself, or the transform in front of it.
        lora_target_modules: Modules that get LoRA when a PEFT config leaves `target_modules` out: ends of dotted paths, as PEFT
            reads them, such as "query" or "ff.0". Empty: there are none that it could go to by itself.
        architectures: Class names in `config.architectures` that belong to the family whatever the model type says; looked
            at before the model type.
        known_by: Pairs of a config attribute and its value that tell the family from another one of the same classes; all must
            hold, and they are looked at before anything else.
        layer_classes: Classes of the repeated layers: the units that FSDP shards and that are never split over devices.
        activation_checkpointing: The layers can recompute their activations in the backward pass.
        lm_head_at: Dotted path of the LM head where `get_output_embeddings()` does not give it.
        input_embeddings_at: Dotted path of the token embeddings where `get_input_embeddings()` does not give them.
        hidden_size_name: Attribute of the config that holds the width of the final hidden state.
        logits_alignment: "same_position" when logits at position i are about token i, "next_token" when they are about
            token i + 1, as in models adapted from autoregressive ones (Dream).
        mask_token_id: Id of the mask token when neither config nor tokenizer tells; None when there is no such rule.
        mask_token_vocab_size: Vocabulary that `mask_token_id` belongs to: in a model with another one it says nothing.
            None: any vocabulary.
        edit_tokens: Tokens by which a text whose length changes is edited (delete, split, expand): names of attributes of the
            config or the tokenizer that hold their ids, or the tokens as they are written. A canvas keeps its length, so they
            are never drawn; where none of them is there, as in the family's other checkpoints, there is nothing to leave out.
        attention_mask: "2d" when the model honours a [batch, length] mask; "4d" when it wants the bool mask [batch, 1,
            length, length], True where a query may look; "none" when it takes none: then rows must be equally long.
        mask_argument: Name of the argument that takes the mask.
        attention_block_length: With "4d": a position sees its own block of that many and the blocks before, as the family
            was trained. The mask is then passed without padding too, and samplers keep these blocks. None: it sees the whole
            row.
        causal_context: With `attention_block_length`: the block that is written sees itself whole and all before it, and every
            other position what stands before it, as in an autoregressive model. Which block that is, masks say by the value 2
            (`call_arguments`); where a row has none, all its blocks see themselves whole.
        block_length_name: Attribute of the config that holds `attention_block_length`, where checkpoints differ in it.
        needs_visible_token: A row of mask tokens alone has no logits, so that one is refused.
        keeps_evaluation_mode: In training mode the code does something else, such as taking labels and making noise and loss
            itself (SDAR, Fast-dLLM v2), so its modules stay in evaluation mode while it is trained. Dropout layers follow the
            mode of the whole, an adapter's among them; dropout that the code applies by itself is off.
        pads: What the pretraining did with short rows: "ignored" hid their padding, "supervised" filled them with EOS
            tokens that were seen and learnt, which data preparation can repeat (`pads: supervised`).
        auto_class: Name of the transformers auto class that loads the family with its LM head.
        prefers_own_code: Use transformers' class even where a checkpoint brings code of its own.
        causal_by_default: The class attends to the left only, unless `config.is_causal` is False (or, as Gemma has it,
            `config.use_bidirectional_attention` is True).
        adapted_model_types: Model types under which the same weights, trained further with attention to both sides, are saved.
            Such a checkpoint is loaded into this family's class, with `config.is_causal=False` and without code of its own.
        loads_as: Model type of transformers whose class takes the family's weights as they are named. A checkpoint is loaded
            into that, with `config.is_causal=False` and without code of its own, and its config says the family's name under
            `masked_diffusion_family`, saved copies too. None: the class is the family's own.
        weight_names: With `loads_as`: pairs of how names of weights begin in the family's files and in that class.
        required_config: Pairs of a config attribute and the value that it must have, where it is there at all.
        call_arguments: Pairs of a name and a value that every call of the model is given.
        time_argument: Name of an argument that takes one time per row. It gets zeros: such families ignore it unless they
            are time-conditioned, which `required_config` excludes.
        rotary_method: Name of a method of the family's modules that gives sines and cosines of the positions from 0 on,
            [1, 1, length, width] each, where the forward takes no `position_ids`: a look with a cache asks it for others.
        settings_while_attached: Pairs of a dotted attribute path, from the model, and the value it must have while the
            quality head is attached; `PrismModel.detach` puts the old values back.
        reference: Where the facts come from.
    """

    model_type: str
    final_hidden_at: str
    lora_target_modules: tuple[str, ...]
    architectures: tuple[str, ...] = ()
    known_by: Settings = ()
    layer_classes: tuple[str, ...] = ()
    activation_checkpointing: bool = True
    lm_head_at: str | None = None
    input_embeddings_at: str | None = None
    hidden_size_name: str = "hidden_size"
    logits_alignment: Literal["same_position", "next_token"] = "same_position"
    mask_token_id: int | None = None
    mask_token_vocab_size: int | None = None
    edit_tokens: tuple[str, ...] = ()
    attention_mask: Literal["2d", "4d", "none"] = "2d"
    mask_argument: str = "attention_mask"
    attention_block_length: int | None = None
    causal_context: bool = False
    block_length_name: str | None = None
    needs_visible_token: bool = False
    keeps_evaluation_mode: bool = False
    pads: Literal["ignored", "supervised"] = "ignored"
    auto_class: str = "AutoModelForMaskedLM"
    prefers_own_code: bool = False
    causal_by_default: bool = False
    adapted_model_types: tuple[str, ...] = ()
    loads_as: str | None = None
    weight_names: tuple[tuple[str, str], ...] = ()
    required_config: Settings = ()
    call_arguments: Settings = ()
    time_argument: str | None = None
    rotary_method: str | None = None
    settings_while_attached: Settings = ()
    reference: str = ""

    def __post_init__(self) -> None:
        if not self.model_type or not self.final_hidden_at:
            raise BackboneError(
                "A BackboneSpec needs `model_type` and `final_hidden_at`, got "
                f"{self.model_type!r} and {self.final_hidden_at!r}."
            )
        for name, allowed in (
            ("logits_alignment", ALIGNMENTS),
            ("attention_mask", ("2d", "4d", "none")),
            ("pads", ("ignored", "supervised")),
        ):
            if getattr(self, name) not in allowed:
                raise BackboneError(
                    f"`{name}` of a BackboneSpec must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}."
                )
        if self.attention_block_length is not None and (self.attention_mask != "4d" or self.attention_block_length < 1):
            raise BackboneError(
                "`attention_block_length` must be at least 1 and goes with `attention_mask='4d'`, got "
                f"{self.attention_block_length} with {self.attention_mask!r}."
            )
        if self.causal_context and (self.attention_block_length, self.block_length_name) == (None, None):
            raise BackboneError("`causal_context` says what stands before a block sees, so it needs `attention_block_length`.")
        if self.block_length_name is not None and self.attention_mask != "4d":
            raise BackboneError(f"`block_length_name` goes with `attention_mask='4d'`, got {self.attention_mask!r}.")
        if self.mask_token_vocab_size is not None and self.mask_token_id is None:
            raise BackboneError("`mask_token_vocab_size` says which vocabulary `mask_token_id` belongs to, but that is None.")

    def of_config(self, config: PreTrainedConfig) -> "BackboneSpec":
        """The same with what this checkpoint's config says of it.

        Raises:
            BackboneError: If the config says nothing of use where the family's configs say it.
        """
        if self.block_length_name is None:
            return self
        length = getattr(config, self.block_length_name, None)
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise BackboneError(
                f"The config of a {self.model_type!r} model must say by `{self.block_length_name}` how many positions its "
                f"attention takes as a block, at least 1, found {length!r}; take config.json from the checkpoint's repository."
            )
        return replace(self, attention_block_length=length)


def lm_head_of(backbone: PreTrainedModel, spec: BackboneSpec) -> Any:
    """The output projection of a model, or None when it has none where its family should."""
    if spec.lm_head_at is None:
        return backbone.get_output_embeddings()
    return dict(backbone.named_modules(remove_duplicate=False)).get(spec.lm_head_at)


def vocab_size_of(lm_head: Any) -> int:
    """How many tokens a model knows, which is what its LM head can write and what may be given to it.

    A config's `vocab_size` can be less: LLaDA pads it to `embedding_size`, and what is drawn there must be read again. It says
    which vocabulary a family has, and stands in files for that.
    """
    return lm_head.out_features if isinstance(lm_head, nn.Linear) else lm_head.weight.shape[0]  # packed or sharded, too


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where its weights lie, or where accelerate takes them for each call if they are offloaded."""
    weight = next(module.parameters())
    offloaded_to = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device(offloaded_to) if weight.is_meta and offloaded_to is not None else weight.device


def input_embeddings_of(backbone: PreTrainedModel, spec: BackboneSpec) -> nn.Module:
    """The token embeddings of a model."""
    if spec.input_embeddings_at is None:
        return backbone.get_input_embeddings()
    return backbone.get_submodule(spec.input_embeddings_at)


def hidden_size_of(config: PreTrainedConfig, spec: BackboneSpec) -> int:
    """Width of the final hidden state, which the quality head reads."""
    return getattr(config.get_text_config(), spec.hidden_size_name)


_SPECS: dict[str, BackboneSpec] = {}


def register_backbone(spec: BackboneSpec, *, replace: bool = False) -> None:
    """Make a family known by its `model_type` and `architectures`, for this process.

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


def is_registered(spec: BackboneSpec) -> bool:
    """Whether a spec is in the table of known families, as against one that was inferred."""
    known = _SPECS.get(spec.model_type)
    if known is not None and known.block_length_name is not None:
        known = replace(known, attention_block_length=spec.attention_block_length)  # of one checkpoint
    return known == spec


def find_spec(
    model_type: str, architectures: Iterable[str] | None = (), stated: Mapping[str, Any] | None = None
) -> BackboneSpec | None:
    """The registered spec of a family, or None: by what its config says, by its class names, then by its model type.

    What depends on the checkpoint is not in it: that is for `BackboneSpec.of_config`.

    LLaDA-MoE calls itself "llada" as the dense models do, which only its class name tells apart; DPLM has the model type of
    ESM-2, is loaded into its class, and says in `dplm_type` that it is another family.

    Args:
        model_type: As in config.json.
        architectures: Class names.
        stated: All that the config says.
    """
    names, stated = set(architectures or ()), {**(stated or {}), "model_type": model_type}
    if stated.get(FAMILY) in _SPECS:
        return _SPECS[stated[FAMILY]]
    by_config = (
        spec for spec in _SPECS.values() if spec.known_by and all(stated.get(name) == value for name, value in spec.known_by)
    )
    by_class = (spec for spec in _SPECS.values() if names.intersection(spec.architectures))
    adapted = (spec for spec in _SPECS.values() if model_type in spec.adapted_model_types)
    return next(by_config, None) or next(by_class, None) or _SPECS.get(model_type) or next(adapted, None)


def get_spec_by_model_type(model_type: str, architectures: Iterable[str] | None = ()) -> BackboneSpec:
    """Return the registered spec of a model type, or of a class name where that is registered too.

    Raises:
        BackboneError: If none is registered.
    """
    spec = find_spec(model_type, architectures)
    if spec is None:
        raise BackboneError(
            f"No BackboneSpec is registered for model type {model_type!r}{did_you_mean(model_type, _SPECS)}; known: "
            f"{', '.join(sorted(_SPECS))}; describe another family with "
            "`register_backbone(BackboneSpec(model_type=..., final_hidden_at=..., ...))`."
        )
    return spec


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
    vocab_size = config.get_text_config().vocab_size
    spec_applies = spec.mask_token_vocab_size in (None, vocab_size)
    sources = (
        ("PrismConfig.mask_token_id", argument),
        ("the model's config.mask_token_id", getattr(config, "mask_token_id", None)),
        ("the tokenizer's mask_token_id", from_tokenizer),
        (f"the BackboneSpec of {spec.model_type!r}", spec.mask_token_id if spec_applies else None),
    )
    found = next(((source, value) for source, value in sources if value is not None), None)
    if found is None:
        raise MaskTokenError(
            f"No mask token id is known for this {spec.model_type!r} model: its config and tokenizer have none; "
            "pass `PrismConfig(mask_token_id=...)`."
        )
    source, mask_token_id = found
    if isinstance(mask_token_id, bool) or not isinstance(mask_token_id, int) or not 0 <= mask_token_id < vocab_size:
        raise MaskTokenError(
            f"The mask token id must be an integer in [0, {vocab_size}), the model's vocabulary, but {source} says "
            f"{mask_token_id!r}; pass the right one as `PrismConfig(mask_token_id=...)`."
        )
    if from_tokenizer is not None and from_tokenizer != mask_token_id:
        raise MaskTokenError(
            f"{source[0].upper()}{source[1:]} says that the mask token is {mask_token_id}, but the tokenizer's mask token "
            f"{getattr(tokenizer, 'mask_token', None)!r} is {from_tokenizer}; pass the tokenizer that belongs to this model."
        )
    return mask_token_id, source
