"""Where weights may lie and in which dtype: what `device_map` and `dtype` say, held against the devices of this machine."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from prism_plugin.errors import ConfigurationError

DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device]

# transformers' words for a `device_map` that accelerate works out, and for places that are no devices of the machine.
_WORKED_OUT = ("auto", "balanced", "balanced_low_0", "sequential")
_NO_DEVICES = ("disk", "meta")


def accelerators() -> tuple[str, ...]:
    """Names of this machine's accelerators, such as "cuda:0", the first to be used first; none where there is only a CPU."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    return () if kind is None else tuple(f"{kind.type}:{index}" for index in range(torch.accelerator.device_count()))


def best_device() -> str:
    """The first accelerator, or the CPU where there is none."""
    return next(iter(accelerators()), "cpu")


def require_device(device: str | int | torch.device, name: str) -> None:
    """Check that a device is there, before anything is loaded for it.

    Args:
        device: As torch writes devices, "cpu" or "cuda:1"; a number is one of the accelerators.
        name: What the user calls it.

    Raises:
        ConfigurationError: If there is no such device.
    """
    found = accelerators()
    if isinstance(device, int) and not isinstance(device, bool) and 0 <= device < len(found):
        return
    try:
        wanted = torch.device(device) if isinstance(device, str | torch.device) else None
    except RuntimeError:  # a word that torch does not know
        wanted = None
    if wanted is not None and (wanted.type == "cpu" or f"{wanted.type}:{wanted.index or 0}" in found):
        return
    raise ConfigurationError(
        f"`{name}` must be a device that torch finds on this machine, {', '.join(('cpu', *found))}, got {str(device)!r}."
    )


def require_placement(dtype: torch.dtype | str | None, device_map: DeviceMap | None, *, loaded: str | None = None) -> None:
    """Check what a loader is told about weights, before anything is loaded.

    Args:
        dtype: A floating dtype of torch, its name, "auto", or None.
        device_map: As transformers takes it, or None.
        loaded: Name of an argument that brings the weights already loaded, so that nothing may be said about them; or None.

    Raises:
        ConfigurationError: If torch has no such dtype, the machine no such device, or either is given with `loaded`.
    """
    if loaded is not None and (dtype is not None or device_map is not None):
        raise ConfigurationError(
            f"`dtype` and `device_map` say how a backbone is loaded, but `{loaded}` brings one that is loaded; load it so, or "
            "leave them out."
        )
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, "auto") and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ConfigurationError(f'`dtype` must be a floating dtype of torch such as bfloat16, or "auto", got {dtype!r}.')
    for device in _devices_of(device_map):
        require_device(device, "device_map")


def _devices_of(device_map: DeviceMap | None) -> Iterator[Any]:
    if device_map is None or device_map in _WORKED_OUT:
        return
    places = device_map.values() if isinstance(device_map, Mapping) else (device_map,)
    yield from (place for place in places if str(place) not in _NO_DEVICES)
