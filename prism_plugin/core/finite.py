"""Whether tensors hold numbers only. A check reads each tensor once, makes nothing of its size, and waits once per device."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from prism_plugin.errors import NonFiniteError


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that holds NaN or infinity; None where all are finite.

    Args:
        tensors: By name. Those that hold no floating-point number, or no value at all ("meta"), are passed over; of a sharded
            one, only what lies on this process is looked at.
    """
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        here = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
        if here.is_floating_point() and here.numel() and not here.is_meta:
            by_device.setdefault(here.device, []).append((name, _finite(here)))
    wrong = set()
    for checked in by_device.values():
        finite = torch.stack([answer for _, answer in checked]).tolist()
        wrong |= {name for (name, _), ok in zip(checked, finite, strict=True) if not ok}
    return next((name for name in tensors if name in wrong), None)


def _finite(tensor: Tensor) -> Tensor:
    # 8-bit floats have no minimum of their own. Both ends are NaN where one number is.
    low, high = torch.aminmax(tensor.float() if tensor.itemsize == 1 else tensor)
    return low.isfinite() & high.isfinite()


def require_numbers(answers: Tensor, what: str) -> Tensor:
    """Give back what a model said of some tokens, if it is a number for each.

    Args:
        answers: Of any shape.
        what: What they are, for the message.

    Raises:
        NonFiniteError: If one is NaN.
    """
    if answers.isnan().any():
        raise NonFiniteError(
            f"The {what} of a token must be a number, but the model gave NaN; look at its weights, and load a model in "
            "bfloat16 or float32 if float16 is too narrow for it."
        )
    return answers
