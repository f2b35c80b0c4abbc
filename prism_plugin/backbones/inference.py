"""What can be found out about a model of an unknown family by looking: once, at a few tokens, with hooks on its modules."""

import inspect
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from prism_plugin.backbones.call_changes import CallChanges
from prism_plugin.backbones.modes import evaluation_mode, kept_random_state, trial_of_training
from prism_plugin.backbones.probe import is_sharded, judge_bidirectional, plain_tokens
from prism_plugin.backbones.spec import BackboneSpec, device_of, find_spec
from prism_plugin.errors import BackboneError, first_line, is_out_of_memory

_WIDTH_NAMES = ("hidden_size", "d_model", "hidden_dim", "n_embd", "dim")


def get_backbone_spec(backbone: PreTrainedModel) -> BackboneSpec:
    """Return the spec that fits a live model, by its class name, then by its `config.model_type`, then by looking at it.

    A family without a registered spec is looked at (`infer_spec`), and a warning says what it was taken for.

    Raises:
        BackboneError: If the object has no `config.model_type`, its config lacks what those of its family say, or no spec is
            registered for it and none can be inferred.
    """
    model_type = getattr(getattr(backbone, "config", None), "model_type", None)
    if not isinstance(backbone, nn.Module) or not model_type:
        raise BackboneError(
            "A backbone must be a transformers model with `config.model_type`, "
            f"got {type(backbone).__name__}; load one with `load_backbone(...)`."
        )
    spec = find_spec(model_type, [type(backbone).__name__], vars(backbone.config))
    if spec is not None:
        return spec.of_config(backbone.config)
    spec = infer_spec(backbone)
    warnings.warn(
        f"No BackboneSpec is registered for model type {model_type!r}; {type(backbone).__name__} was looked at and is taken "
        f"to be {describe(spec)}; register that, or what is right, to be sure.",
        stacklevel=3,
    )
    return spec


def describe(spec: BackboneSpec) -> str:
    """Write a spec as the call that makes it, with what differs from the defaults."""
    default = BackboneSpec(spec.model_type, spec.final_hidden_at, spec.lora_target_modules)
    needed = ("model_type", "final_hidden_at", "lora_target_modules")
    shown = [name for name in vars(spec) if name in needed or getattr(spec, name) != getattr(default, name)]
    return f"BackboneSpec({', '.join(f'{name}={getattr(spec, name)!r}' for name in shown)})"


def infer_spec(backbone: PreTrainedModel) -> BackboneSpec:
    """Describe a model of an unknown family. Whether the description is right is for the probes to say.

    The quality head shall read what the model's body gives, so the place is the first module outside the body that is called
    with it; where there is none, the LM head. LoRA goes to the linear layers in the body's repeated blocks that are called, by
    names that occur nowhere else in the model, or else by as much of their path as tells them apart; where there are none, it
    goes nowhere by itself. Logits are taken to be about their own position.

    Args:
        backbone: A transformers model with its LM head; it may be on the meta device.

    Raises:
        BackboneError: If it has no LM head that is a linear layer, cannot be called with tokens, or nothing is called with its
            final hidden state.
    """
    lm_head = backbone.get_output_embeddings()
    if lm_head is None or isinstance(lm_head, nn.Embedding) or getattr(lm_head, "weight", None) is None:
        raise _refusal(backbone, "it has no LM head in `get_output_embeddings()`")
    names = {module: name for name, module in backbone.named_modules()}
    calls, given = _look(backbone)
    final_hidden_at, width = _final_hidden_at(backbone, names, calls, given)
    config = backbone.config.get_text_config()
    hidden_size_name = next((name for name in _WIDTH_NAMES if getattr(config, name, None) == width), None)
    if hidden_size_name is None:
        raise _refusal(backbone, f"its final hidden state is {width} wide, which its config does not say under a known name")
    of_transformers = type(backbone).__module__.startswith("transformers.")
    # XLM's and FlauBERT's classes end like those of decoders.
    is_encoder_class = type(backbone).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    is_decoder_class = type(backbone).__name__.endswith(("ForCausalLM", "LMHeadModel")) and not is_encoder_class
    return BackboneSpec(
        model_type=backbone.config.model_type,
        final_hidden_at=final_hidden_at,
        lora_target_modules=_lora_targets(backbone, names, given),
        activation_checkpointing=backbone.supports_gradient_checkpointing,
        hidden_size_name=hidden_size_name,
        keeps_evaluation_mode=_fails_in_training(backbone),
        attention_mask="2d" if "attention_mask" in inspect.signature(backbone.forward).parameters else "none",
        auto_class="AutoModelForCausalLM" if is_decoder_class else "AutoModelForMaskedLM",
        causal_by_default=of_transformers and is_decoder_class and not _sees_what_follows(backbone),
        settings_while_attached=(("config.use_cache", False),) if hasattr(backbone.config, "use_cache") else (),
    )


def _refusal(backbone: PreTrainedModel, reason: str) -> BackboneError:
    model_type = backbone.config.model_type
    return BackboneError(
        f"No BackboneSpec is registered for model type {model_type!r}, and looking at {type(backbone).__name__} gives none, "
        f"since {reason}; describe it with `register_backbone(BackboneSpec(model_type={model_type!r}, final_hidden_at=..., "
        "lora_target_modules=...))`."
    )


def _look(backbone: PreTrainedModel) -> tuple[list[tuple[nn.Module, Tensor]], dict[nn.Module, Tensor]]:
    """Call the model once. Returns every module's first argument, in order of the calls, and what every module gave."""
    calls: list[tuple[nn.Module, Tensor]] = []
    given: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            calls.append((module, args[0]))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        parts = tuple(output.values()) if hasattr(output, "keys") else output if isinstance(output, tuple | list) else (output,)
        if parts and isinstance(parts[0], Tensor):
            given[module] = parts[0]

    tokens = torch.tensor([plain_tokens(backbone.config, ())[:4]])
    handles = [module.register_forward_pre_hook(before) for module in backbone.modules()]
    handles += [module.register_forward_hook(after) for module in backbone.modules()]
    try:
        with evaluation_mode(backbone):
            _call(backbone, tokens)
    except Exception as error:  # code of a repository may raise anything
        if is_out_of_memory(error):
            raise
        raise _refusal(backbone, f"its forward fails on plain tokens ({type(error).__name__}: {first_line(error)})") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls, given


def _call(backbone: PreTrainedModel, tokens: Tensor) -> Any:
    """Call the model in its mode, and leave it as it was."""
    device, changes = device_of(backbone.get_input_embeddings()), CallChanges(backbone)
    try:
        with torch.no_grad(), kept_random_state(device), changes.watched(tokens.shape):
            return backbone(input_ids=tokens.to(device))
    finally:
        changes.put_back()


def _sees_what_follows(backbone: PreTrainedModel) -> bool:
    """Whether a decoder class attends to both sides unasked, as XLNet's does. Without weights, or where it is asked, no."""
    weights = (*backbone.parameters(), *backbone.buffers())
    if not getattr(backbone.config, "is_causal", True) or any(one.is_meta for one in weights) or is_sharded(backbone):
        return False
    tokens = torch.tensor([plain_tokens(backbone.config, ())[:4]]).repeat(3, 1)
    tokens[2, -1] = tokens[0, 0]
    with evaluation_mode(backbone):
        base, again, moved = _call(backbone, tokens).logits
    return judge_bidirectional(type(backbone).__name__, base, again, moved).ok is True


def _fails_in_training(backbone: PreTrainedModel) -> bool:
    """Whether its forward fails in training mode or gives no logits, as code does that takes labels and makes its own loss."""
    try:
        with trial_of_training(backbone):
            output = _call(backbone, torch.tensor([plain_tokens(backbone.config, ())[:4]]))
    except Exception as error:  # code of a repository may raise anything
        if is_out_of_memory(error):
            raise
        return True
    return getattr(output, "logits", None) is None


def _final_hidden_at(
    backbone: PreTrainedModel,
    names: dict[nn.Module, str],
    calls: list[tuple[nn.Module, Tensor]],
    given: dict[nn.Module, Tensor],
) -> tuple[str, int]:
    """Where the final hidden state goes in, and how wide it is."""
    body, lm_head = backbone.base_model, backbone.get_output_embeddings()
    inside = set(body.modules()) if body is not backbone else set()
    if body in given and body is not backbone:
        for module, argument in calls:
            if module not in inside and module is not backbone and _same(argument, given[body]):
                return names[module], argument.shape[-1]
    for module, argument in calls:
        if module is lm_head and argument.ndim == 3:
            return names[module], argument.shape[-1]
    raise _refusal(backbone, "no module of it is called with the final hidden state")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same place, which can be told without values."""
    same_place = (
        one.untyped_storage()._cdata == other.untyped_storage()._cdata and one.storage_offset() == other.storage_offset()
    )
    return same_place and one.shape == other.shape


def _lora_targets(backbone: PreTrainedModel, names: dict[nn.Module, str], called: Collection[nn.Module]) -> tuple[str, ...]:
    """Ends of the paths of linear layers in repeated blocks of the body, each as short as tells it from all other modules.

    Layers that no block of their kind calls are left out (Longformer's for global attention); of experts, some are always idle.
    A name that other modules have too, as BERT's `dense`, is left out unless nothing else is there.
    """
    inside, lm_head = set(backbone.base_model.modules()), backbone.get_output_embeddings()
    in_use = {_of_any_block(names[module]) for module in called}
    wanted = [
        name
        for module, name in names.items()
        if isinstance(module, nn.Linear | Conv1D) and module in inside and module is not lm_head
        and _of_any_block(name) != name and _of_any_block(name) in in_use
    ]  # fmt: skip
    elsewhere = {end for name in set(names.values()).difference(wanted) for end in _ends(name)}
    told_apart = {name: [end for end in _ends(name) if end not in elsewhere and not end[0].isdigit()] for name in wanted}
    found = dict.fromkeys((name, ends[0]) for name, ends in told_apart.items() if ends)
    by_name = [end for name, end in found if "." not in end or name.rpartition(".")[2].isdigit()]
    return tuple(dict.fromkeys(by_name or [end for _, end in found]))


def _of_any_block(name: str) -> str:
    """A module's path, with a star for the numbers in it."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _ends(name: str) -> list[str]:
    """The ends of a dotted path, from the last part to the whole."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]
