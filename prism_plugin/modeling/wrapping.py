"""Puts an adapter on a backbone, and remembers the user's model so that it can be given back as it was."""

import copy
import math
import warnings
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from accelerate.utils import has_offloaded_params
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from prism_plugin.backbones import BackboneSpec, input_embeddings_of, lm_head_of
from prism_plugin.errors import ConfigurationError, first_line
from prism_plugin.modeling.attached_settings import owner_of
from prism_plugin.modeling.reopening import require_reopening, without_values

_NOT_PLAIN = object()


@dataclass(frozen=True)
class BackboneSnapshot:
    """What attaching may change on a backbone. Parameters go by name: a reference would keep weights in memory that were
    moved to a device or sharded since."""

    embeddings: nn.Module
    children: list[tuple[nn.Module, str, nn.Module | None]]
    attributes: list[tuple[object, dict[str, Any]]]
    requires_grad: dict[str, bool]
    settings: list[tuple[object, str, Any]]
    embedding_hooks: frozenset[int]
    checkpointing: bool
    kept: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def take(cls, backbone: PreTrainedModel, spec: BackboneSpec) -> "BackboneSnapshot":
        """Look at a backbone before anything is changed.

        Raises:
            BackboneError: If the spec names a setting that the backbone lacks.
        """
        modules, embeddings = list(backbone.modules()), input_embeddings_of(backbone, spec)
        owners = [owner_of(backbone, path) for path, _ in spec.settings_while_attached]
        return cls(
            embeddings=embeddings,
            children=[(module, name, child) for module in modules for name, child in module._modules.items()],
            attributes=[(owner, _plain_attributes(owner)) for owner in (*modules, backbone.config)],
            requires_grad={name: parameter.requires_grad for name, parameter in backbone.named_parameters()},
            settings=[(owner, name, getattr(owner, name)) for owner, name in owners],
            embedding_hooks=frozenset(embeddings._forward_hooks),
            checkpointing=backbone.is_activation_checkpointing,
        )

    def restore(self, backbone: PreTrainedModel) -> None:
        """Undo everything but training: adapters off; flags, modes, settings and hooks as they were, and what Trainer set."""
        for module, name, child in self.children:
            module._modules[name] = child
        vars(backbone).pop("peft_config", None)  # PEFT would otherwise warn of a second adapter
        if backbone.is_activation_checkpointing and not self.checkpointing:
            backbone.activation_checkpointing_disable()
            backbone.disable_input_require_grads()
        hooks = self.embeddings._forward_hooks
        for key in set(hooks) - self.embedding_hooks:  # PEFT adds its own where checkpointing was on before
            del hooks[key]
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(self.requires_grad[name])
            if name in self.kept:
                parameter.data.copy_(self.kept[name])
        for owner, name, value in self.settings:
            setattr(owner, name, value)
        for owner, had in self.attributes:
            vars(owner).update({name: value for name, value in had.items() if value is not _NOT_PLAIN})
            for name in vars(owner).keys() - had.keys():
                if owner is backbone.config or _is_of_checkpointing(name):
                    del vars(owner)[name]


def _plain_attributes(owner: object) -> dict[str, Any]:
    """The attributes of a module or a config: their names, and the values of flags and settings."""
    plain = (bool, int, float, str, NoneType, torch.dtype)
    return {
        name: value if isinstance(value, plain) or _is_of_checkpointing(name) else _NOT_PLAIN
        for name, value in vars(owner).items()
    }


def _is_of_checkpointing(name: str) -> bool:
    # transformers leaves these on modules when checkpointing is disabled again, and PEFT replaces the handles of its hooks.
    return name.lstrip("_").startswith(("gradient_checkpointing", "require_grads_hook"))


def offloaded_weights(backbone: nn.Module) -> list[str]:
    """Names of the weights that accelerate fetches for each call, as where a `device_map` says "cpu" or "disk"."""
    return [
        f"{path}.{name}"
        for path, module in backbone.named_modules()
        if has_offloaded_params(module)
        for name, weight in module.named_parameters(recurse=False)
        if weight.is_meta
    ]


def require_trainable_weights(backbone: PreTrainedModel) -> None:
    """Check that a backbone's weights lie where they can be trained. An adapter's lie beside them: PEFT makes those of an
    offloaded layer without values, so such a model cannot be used at all.

    Raises:
        ConfigurationError: If accelerate offloads some.
    """
    offloaded = offloaded_weights(backbone)
    if offloaded:
        raise ConfigurationError(
            f"`lora` and `train_backbone` need weights that stay on their devices, but {len(offloaded)} of them are offloaded, "
            f"{offloaded[0]} for one; load the backbone without offloading, for `lora` in 4 bits if need be "
            '(`load_backbone(..., quantization="nf4")`), or attach the head alone.'
        )


def wrap_with_adapter(
    backbone: PreTrainedModel, adapter: PeftConfig, spec: BackboneSpec, snapshot: BackboneSnapshot
) -> PeftModel:
    """Wrap a backbone with PEFT, its default targets being the spec's. The given config is not changed.

    Initialisations that have a name (PiSSA, OLoRA, ...) may take their start out of the backbone's own weights, and LoRA with
    `bias` trains the backbone's own; the snapshot keeps copies of those.

    Raises:
        ConfigurationError: If PEFT refuses the config, an entry of `target_modules` matches nothing, what it trains could not
            be trained as it is set or be opened again, or the adapter would change the LM head, which would make it read rows
            that it was not trained for and break tied embeddings.
    """
    _require_usable(adapter)
    adapter = copy.deepcopy(adapter)  # PEFT writes into the config it is given
    adapter.base_model_name_or_path = None  # PEFT puts the backbone's here, and warns where there was another
    known = f", such as {', '.join(spec.lora_target_modules)}" if spec.lora_target_modules else ""
    if getattr(adapter, "target_modules", ()) is None and not getattr(adapter, "target_parameters", None):
        if not spec.lora_target_modules:
            raise ConfigurationError(
                f"No layers of {type(backbone).__name__} are known that `lora` goes to by itself; name them as "
                "`target_modules`, or attach the head alone."
            )
        adapter.target_modules = set(spec.lora_target_modules)
        if getattr(adapter, "feedforward_modules", ()) is None:
            adapter.feedforward_modules = []  # the spec names attention layers; IA3 would put its own guess here
    skeleton = without_values(backbone)
    forbidden = _lm_head_names(backbone, spec)
    own = dict(backbone.named_parameters())
    rewriting = isinstance(getattr(adapter, "init_lora_weights", None), str)
    before = {name: parameter.detach().clone() for name, parameter in own.items()} if rewriting else {}
    try:
        wrapped = _with_peft(backbone, adapter)
    except Exception as error:  # whatever PEFT's layers make of a value
        raise ConfigurationError(
            f"PEFT cannot put `lora` on {type(backbone).__name__} ({first_line(error).split('. ')[0]}); name layers of it as "
            f"`target_modules`{known}."
        ) from error
    finally:
        snapshot.kept.update((name, data) for name, data in before.items() if not torch.equal(data, own[name]))
    in_training = {name: parameter.detach().clone() for name, parameter in own.items() if parameter.requires_grad}
    snapshot.kept.update(in_training | snapshot.kept)
    targeted: Any = wrapped.base_model.targeted_module_names
    hit = sorted(forbidden.intersection(targeted))
    if hit:
        raise ConfigurationError(
            f"`lora` must not adapt the LM head, but its `target_modules` match {', '.join(hit)}; name layers inside the "
            f"backbone{known}."
        )
    if isinstance(adapter.target_modules, list | set | tuple):
        idle = [name for name in sorted(adapter.target_modules) if not any(_matches(key, name) for key in targeted)]
        if idle and adapter.target_modules != {"all-linear"}:
            raise ConfigurationError(
                f"Every entry of `target_modules` must match a module of {type(backbone).__name__}, "
                f"but nothing is called {', '.join(idle)}; leave that out, or name layers of it{known}."
            )
    require_reopening(wrapped, skeleton, _with_peft)
    return wrapped


_VIRTUAL_TOKENS = "adds virtual tokens, so positions would no longer match"
# Types of PEFT that no model here can be trained with as they are set, and why.
_UNUSABLE = {
    "ADALORA": "gives out its ranks by calls between the steps, which nothing here makes",
    "ADAPTION_PROMPT": _VIRTUAL_TOKENS,
    "POLY": "reads the number of a task with each row, which no batch has here",
    "SHADOW": "runs a second network that returns more than tensors between the layers",
    "XLORA": "mixes adapters that were trained before",
}


def _require_usable(adapter: PeftConfig) -> None:
    """Refuse what can be seen in a config alone."""
    name = type(adapter).__name__
    peft_type: Any = getattr(adapter.peft_type, "value", adapter.peft_type)
    reason = _VIRTUAL_TOKENS if adapter.is_prompt_learning else _UNUSABLE.get(peft_type)
    if getattr(adapter, "use_asa", False):  # AdaMSS, which may do without
        reason = "with `use_asa` gives out its subspaces by calls between the steps, which nothing here makes"
    if reason is not None:
        raise ConfigurationError(
            f"`lora` must adapt weights, but {name} {reason}; use LoraConfig or another config with `target_modules`."
        )
    scales = {key: getattr(adapter, key, None) for key in ("lora_alpha", "alpha")}
    scales |= {f"alpha_pattern[{key!r}]": value for key, value in (getattr(adapter, "alpha_pattern", None) or {}).items()}
    for key, value in scales.items():
        if isinstance(value, int | float) and (value == 0 or not math.isfinite(value)):
            raise ConfigurationError(
                f"`{key}` of {name} multiplies what the adapter adds, so it must be a finite number other than 0, got {value}."
            )


def _with_peft(backbone: PreTrainedModel, adapter: PeftConfig) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT 0.21 reads a name that transformers 5.23 deprecated. Goes when it asks for `is_activation_checkpointing`.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        # Its warning of adapters on tied weights: the check below refuses those.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
        # GPT-2's layers hold their weights the other way round, which PEFT notes in the config by itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False but the target module is `Conv1D`")
        # Not `get_peft_model`, which takes a class by `task_type`: those pass on arguments that not every family has, such as
        # an attention mask to MDLM.
        return PeftModel(backbone, adapter)


def _matches(module_name: str, target: str) -> bool:
    return module_name == target or module_name.endswith(f".{target}")


def _lm_head_names(backbone: PreTrainedModel, spec: BackboneSpec) -> set[str]:
    """Names of the output projection and of whatever shares its weight, such as tied input embeddings."""
    head = lm_head_of(backbone, spec)
    return {name for name, module in backbone.named_modules() if module is head or _owns(module, head.weight)}


def _owns(module: nn.Module, weight: Tensor) -> bool:
    return any(parameter is weight for parameter in module._parameters.values())
