"""How a model is set for a while: evaluation mode, no dropout, random state kept. Afterwards it is as it was."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

# On a CPU with AVX-512 BF16, bitsandbytes (0.50) packs a 4-bit layer's weights when it is first called in evaluation mode,
# unless this attribute of the layer is False. Packed weights let no gradient through, and some widths cannot be packed.
_PACKS = "support_avx512bf16_for_cpu"


# Where modules come from that are no model's own code, with all that they are made of.
_LIBRARIES = ("torch.", "peft.", "accelerate.", "bitsandbytes.", "builtins", "abc", "typing")


def is_of_a_library(module: nn.Module) -> bool:
    """Whether a module is torch's, PEFT's and the like, and not a piece of a model's own code, sharded or not."""
    return all(base.__module__.startswith(_LIBRARIES) for base in type(module).__mro__)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and give each its own mode back at the end; no weight is packed meanwhile."""
    with kept_modes(model):
        packing = [module for module in model.modules() if getattr(module, _PACKS, False)]
        model.eval()
        for module in packing:
            setattr(module, _PACKS, False)
        try:
            yield
        finally:
            for module in packing:
                setattr(module, _PACKS, True)


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """While open, modules may change their mode; afterwards each has its own again, and one that came meanwhile the whole's."""
    whole, modes = model.training, {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module in (*modes, *model.modules()):
            module.training = modes.get(module, whole)


@contextmanager
def trial_of_training(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode without dropout, as it is trained; at the end modes and running statistics come back."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    statistics = [(buffer, buffer.clone()) for module in norms for buffer in module.buffers(recurse=False)]
    with kept_modes(model), dropout_off(model):
        model.train()
        try:
            yield
        finally:
            for buffer, before in statistics:
                buffer.copy_(before)


def stay_in_evaluation_mode(backbone: nn.Module) -> None:
    """Put a model that is being trained back into evaluation mode, for families whose code does something else in training.

    Modules of libraries keep their mode: dropout layers, and an adapter's. So do layers that recompute their activations, which
    transformers lets them do in training mode only.
    """
    for module in backbone.modules():
        if not is_of_a_library(module) and not (recomputes_by_itself(module) and module.gradient_checkpointing):
            module.training = False


def recomputes_by_itself(module: nn.Module) -> bool:
    """Whether a layer can recompute its activations by its own mode, whatever that of the modules around and inside it."""
    return isinstance(module, GradientCheckpointingLayer)


def kept_random_state(device: torch.device) -> AbstractContextManager[None]:
    """While open, torch may draw random numbers on the CPU and on a device; afterwards its generators are where they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Set every dropout probability of a model to zero, without leaving training mode.

    `eval()` would not do: transformers checkpoints activations only in training mode. The dropout modules are set, and the
    attention's dropout, which most classes keep as a float on the attention module and LLaDA reads from its config; all are put
    back at the end.
    """
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None))}
    changed: list[tuple[object, str, float]] = []
    for owner in owners.values():
        names = ["p"] if isinstance(owner, nn.modules.dropout._DropoutNd) else []
        held = getattr(owner, "__dict__", {})
        names += [name for name, value in held.items() if "dropout" in name and isinstance(value, float)]
        changed += [(owner, name, getattr(owner, name)) for name in names]
    try:
        for owner, name, _ in changed:
            setattr(owner, name, 0.0)
        yield
    finally:
        for owner, name, probability in changed:
            setattr(owner, name, probability)
