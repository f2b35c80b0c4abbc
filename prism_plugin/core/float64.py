"""float64 on devices that have none: Apple's GPUs. What needs it is then computed on the CPU, with the same result."""

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = frozenset({"mps"})


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for tensors of a device: there, or on the CPU if it cannot be."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def to_float64(tensor: Tensor, *, copy: bool = False) -> Tensor:
    """A tensor in float64, on its device or on the CPU; with `copy` always a new one."""
    # in two steps, so that no float64 is asked of the device
    return tensor.to(float64_device(tensor.device)).to(torch.float64, copy=copy)
