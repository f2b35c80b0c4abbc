"""What can be found out about a model of an unknown family by looking: once, at a few tokens, with hooks on its modules."""

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prism_plugin.backbones.call_changes import CallChanges
from prism_plugin.backbones.modes import evaluation_mode, kept_random_state, trial_of_training
from prism_plugin.backbones.probe import plain_tokens
from prism_plugin.backbones.spec import BackboneSpec, device_of, find_spec
from prism_plugin.errors import BackboneError, first_line, is_out_of_memory

_WIDTH_NAMES = ("hidden_size", "d_model", "hidden_dim", "n_embd", "dim")


def get_backbone_spec(backbone: PreTrainedModel) -> BackboneSpec:
    """Return the spec that fits a live model, by its class name, then by its `config.model_type`, then by looking at it.

    A family without a registered spec is looked at (`infer_spec`), and a warning says what it was taken for.

    Raises:
        BackboneError: If the object has no `config.model_type`, or no spec is registered for it and none can be inferred.
    """
    model_type = getattr(getattr(backbone, "config", None), "model_type", None)
    if not isinstance(backbone, nn.Module) or not model_type:
        raise BackboneError(
            "A backbone must be a transformers model with `config.model_type`, "
            f"got {type(backbone).__name__}; load one with `load_backbone(...)`."
        )
    spec = find_spec(model_type, [type(backbone).__name__], vars(backbone.config))
    if spec is not None:
        return spec
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
    with it; where there is none, the LM head. LoRA goes to the linear layers in the body's repeated blocks, without names
    that occur elsewhere in the model. Logits are taken to be about their own position.

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
    targets = _lora_targets(backbone, names, lm_head)
    if not targets:
        raise _refusal(backbone, "it has no linear layer inside that LoRA could go to")
    of_transformers = type(backbone).__module__.startswith("transformers.")
    is_decoder_class = type(backbone).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    return BackboneSpec(
        model_type=backbone.config.model_type,
        final_hidden_at=final_hidden_at,
        lora_target_modules=targets,
        activation_checkpointing=backbone.supports_gradient_checkpointing,
        hidden_size_name=hidden_size_name,
        keeps_evaluation_mode=_fails_in_training(backbone),
        attention_mask="2d" if "attention_mask" in inspect.signature(backbone.forward).parameters else "none",
        auto_class="AutoModelForCausalLM" if is_decoder_class else "AutoModelForMaskedLM",
        causal_by_default=of_transformers and is_decoder_class,
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

    tokens = plain_tokens(backbone.config, ())[:4]
    device = device_of(backbone.get_input_embeddings())
    handles = [module.register_forward_pre_hook(before) for module in backbone.modules()]
    handles += [module.register_forward_hook(after) for module in backbone.modules()]
    changes = CallChanges(backbone)
    try:
        with evaluation_mode(backbone), torch.no_grad(), kept_random_state(device), changes.watched(len(tokens)):
            backbone(input_ids=torch.tensor([tokens], device=device))
    except Exception as error:  # code of a repository may raise anything
        if is_out_of_memory(error):
            raise
        raise _refusal(backbone, f"its forward fails on plain tokens ({type(error).__name__}: {first_line(error)})") from error
    finally:
        for handle in handles:
            handle.remove()
        changes.put_back()
    return calls, given


def _fails_in_training(backbone: PreTrainedModel) -> bool:
    """Whether its forward fails in training mode or gives no logits, as code does that takes labels and makes its own loss."""
    tokens = plain_tokens(backbone.config, ())[:4]
    device, changes = device_of(backbone.get_input_embeddings()), CallChanges(backbone)
    try:
        with trial_of_training(backbone), torch.no_grad(), kept_random_state(device), changes.watched(len(tokens)):
            output = backbone(input_ids=torch.tensor([tokens], device=device))
    except Exception as error:  # code of a repository may raise anything
        if is_out_of_memory(error):
            raise
        return True
    finally:
        changes.put_back()
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


def _lora_targets(backbone: PreTrainedModel, names: dict[nn.Module, str], lm_head: nn.Module) -> tuple[str, ...]:
    """Leaf names of linear layers in repeated blocks of the body that occur nowhere else."""
    inside = set(backbone.base_model.modules())
    linear = {module: name for module, name in names.items() if isinstance(module, nn.Linear | Conv1D)}
    repeated = {module for module, name in linear.items() if any(part.isdigit() for part in name.split("."))}
    wanted = [module for module in linear if module in inside and module is not lm_head and module in repeated]
    elsewhere = {name.rpartition(".")[2] for module, name in linear.items() if module not in wanted}
    return tuple(dict.fromkeys(leaf for module in wanted if (leaf := names[module].rpartition(".")[2]) not in elsewhere))
