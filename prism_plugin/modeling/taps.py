"""Hidden states of a backbone's layers, for heads that read them: kept while such a head is asked for, and at no other time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.errors import BackboneError, ConfigurationError

_KEPT: ContextVar[dict[int, Tensor] | None] = ContextVar("prism_plugin_taps", default=None)


def install_taps(backbone: nn.Module, spec: BackboneSpec, taps: Sequence[int]) -> list[RemovableHandle]:
    """Put hooks on the layers that a head reads. Removing the handles undoes it.

    Args:
        backbone: The transformers model.
        spec: Its family, which names the classes of the layers.
        taps: Numbers of layers, from 0, or from the last one at -1.

    Raises:
        ConfigurationError: If there are no such layers.
    """
    layers = [module for module in backbone.modules() if type(module).__name__ in spec.layer_classes]
    out_of_range = [tap for tap in taps if not -len(layers) <= tap < len(layers)]
    if out_of_range:
        named = " or ".join(spec.layer_classes) or "those of `layer_classes`, of which its BackboneSpec names none"
        raise ConfigurationError(
            f"`head_taps` must name layers of {type(backbone).__name__}, 0 to {len(layers) - 1} or from the end -1 to "
            f"{-len(layers)} (of the class {named}), found {out_of_range[0]}."
        )
    places = {tap % len(layers) for tap in taps}
    if len(places) < len(taps):
        raise ConfigurationError(f"`head_taps` must name each layer once, found {tuple(taps)} of {len(layers)} layers.")
    return [layers[tap].register_forward_hook(partial(_keep, number)) for number, tap in enumerate(taps)]


def _keep(number: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    kept = _KEPT.get()
    if kept is not None:
        kept[number] = output if isinstance(output, Tensor) else output[0]


@contextmanager
def kept_taps(number: int) -> Iterator[dict[int, Tensor]]:
    """While open, the tapped layers' output is kept, by the place of the layer among the taps; with `number` 0, nothing is.

    Layers that run again in backward, to save memory, do so when this is closed, and keep nothing.
    """
    kept: dict[int, Tensor] = {}
    token = _KEPT.set(kept if number else None)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


def in_order(kept: dict[int, Tensor], number: int, backbone: nn.Module) -> list[Tensor]:
    """The hidden states in the order of the taps.

    Raises:
        BackboneError: If a layer was not called.
    """
    missing = [place for place in range(number) if place not in kept]
    if missing:
        raise BackboneError(
            f"The forward of {type(backbone).__name__} must pass through each layer of `head_taps`, but not through number "
            f"{missing[0]} of them; name other layers."
        )
    return [kept[place] for place in range(number)]
