"""How a model is set for a while: evaluation mode, no dropout, random state kept. Afterwards it is as it was."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

# On a CPU with AVX-512 BF16, bitsandbytes (0.50) packs a 4-bit layer's weights when it is first called in evaluation mode,
# unless this attribute of the layer is False. Packed weights let no gradient through, and some widths cannot be packed.
_PACKS = "support_avx512bf16_for_cpu"


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and give each its own mode back at the end; no weight is packed meanwhile."""
    modes = {module: module.training for module in model.modules()}
    packing = [module for module in modes if getattr(module, _PACKS, False)]
    model.eval()
    for module in packing:
        setattr(module, _PACKS, False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module in packing:
            setattr(module, _PACKS, True)


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
