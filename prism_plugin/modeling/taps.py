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
        ConfigurationError: If there are no such layers, or two taps are one.
    """
    layers = _layers_of(backbone, spec)
    out_of_range = [tap for tap in taps if not -len(layers) <= tap < len(layers)]
    if out_of_range:
        raise ConfigurationError(
            f"`head_taps` must name layers of {type(backbone).__name__}, 0 to {len(layers) - 1} or from the end -1 to "
            f"{-len(layers)}, found {out_of_range[0]}."
        )
    places = {tap % len(layers) for tap in taps}
    if len(places) < len(taps):
        raise ConfigurationError(f"`head_taps` must name each layer once, found {tuple(taps)} of {len(layers)} layers.")
    return [layers[tap].register_forward_hook(partial(_keep, number)) for number, tap in enumerate(taps)]


def _layers_of(backbone: nn.Module, spec: BackboneSpec) -> list[nn.Module]:
    """The repeated layers of a model, first to last: by the classes that its spec names, or else that transformers does.

    Raises:
        ConfigurationError: If neither names any that is there.
    """
    named, modules = spec.layer_classes or tuple(getattr(backbone, "_no_split_modules", None) or ()), backbone.modules()
    if not spec.layer_classes:  # transformers' names are of what must not be split, embeddings too: layers stand in a list
        modules = (layer for one in modules if isinstance(one, nn.ModuleList) for layer in one)
    layers = [module for module in modules if type(module).__name__ in named]
    if not layers:
        found = f"names {', '.join(named)}, of which it has none" if named else "names no `layer_classes`"
        raise ConfigurationError(
            f"`head_taps` counts the layers of {type(backbone).__name__}, but its BackboneSpec {found}; name their class in a "
            "spec (`register_backbone`), or choose a `head` that reads no layers."
        )
    return layers


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
