"""Kinds of quality heads: networks from the final hidden state to one number, by the names that prism_config.json holds."""

import inspect
from collections.abc import Callable

from torch import nn

from prism_plugin.registry import require_name

# hidden size, and the width of a hidden layer where there is one -> a network that gives one number for each position
HEADS: dict[str, Callable[..., nn.Module]] = {}


def register_head(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Give the decorated function a name, which must never change afterwards: files hold it.

    The function takes `hidden_size`, and `inner_size` if the head has a width of its own (`PrismConfig.head_hidden_size`), and
    returns a module that maps [..., hidden] to [..., 1]. Its last linear layer with one output starts at the base rate.

    Raises:
        ConfigurationError: If the name is taken or malformed.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        require_name("head", name, HEADS)
        HEADS[name] = build
        return build

    return add


def has_inner_size(name: str) -> bool:
    """Tell whether a kind of head has a width of its own."""
    return "inner_size" in inspect.signature(HEADS[name]).parameters


@register_head("mlp")
def mlp(hidden_size: int, inner_size: int) -> nn.Module:
    """LayerNorm, Linear, GELU, Linear: the head of the authors' PRISM_llada."""
    layers = (nn.Linear(hidden_size, inner_size), nn.GELU(), nn.Linear(inner_size, 1))
    return nn.Sequential(nn.LayerNorm(hidden_size), *layers)


@register_head("linear")
def linear(hidden_size: int) -> nn.Module:
    """LayerNorm, Linear."""
    return nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, 1))
