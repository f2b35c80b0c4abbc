"""A second device on a machine that has none: tensors with real values that say they are elsewhere, and refuse to be mixed.

torch names a device "lazy" for which it has all that Python needs and no kernels. Here each of its tensors holds one of the
CPU, and every operator is held to what accelerators demand: its tensors are on one device, but for single numbers and the
source of a copy, and there is no float64, as on Apple's GPUs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "lazy:0"
DEVICE = torch.device(NAME)
_COPIES = {torch.ops.aten._to_copy, torch.ops.aten.copy_}


class MixedDevicesError(RuntimeError):
    """An operator was given tensors of two devices."""


class _There(torch.Tensor):
    """A tensor on the other device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "_There":
        if here.dtype == torch.float64:
            raise TypeError("float64 on a device that has none")
        outside = torch.empty_strided(here.shape, here.stride(), dtype=here.dtype, device="meta")
        there = torch.Tensor._make_subclass(
            cls, outside, here.requires_grad, dispatch_device=True, device_for_backend_keys=DEVICE
        )
        there.here = here
        return there

    @property
    def device(self) -> torch.device:
        return DEVICE

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch refuses it for classes of Python

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes tensors there where the other device is named."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    there = {id(one.here): one for one in given if isinstance(one, _There)}
    if func is torch.ops.prim.device.default:
        return DEVICE if there else given[0].device
    asked = kwargs.get("device")
    result_is_there = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
    if asked is not None and result_is_there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if there and func.overloadpacket not in _COPIES:
        strange = [one for one in given if not isinstance(one, _There) and one.ndim]
        if strange:
            shapes = [list(one.shape) for one in strange]
            raise MixedDevicesError(f"{func} was given tensors of the CPU, {shapes}, with others of {NAME}")
    args, kwargs = tree_map(lambda one: one.here if isinstance(one, _There) else one, (args, kwargs))
    result = func(*args, **kwargs)
    if not result_is_there:
        return result
    # what was changed in place is the tensor that was given
    return tree_map(lambda one: there[id(one)] if id(one) in there else _place(one), result)


def _place(one: Any) -> Any:
    return _There(one) if isinstance(one, Tensor) else one


@contextmanager
def other_device(monkeypatch: Any) -> Iterator[str]:
    """While open, this machine has one accelerator. Gives its name."""
    monkeypatch.setattr("prism_plugin.backbones.devices.accelerators", lambda: (NAME,))
    monkeypatch.setattr("prism_plugin.core.float64._WITHOUT_FLOAT64", frozenset({DEVICE.type}))
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a mode holds in one thread, and transformers loads in several
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes its tensor on the CPU, and asks the mode to move it
    try:
        with _Mode(), torch.no_grad():
            yield NAME
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
