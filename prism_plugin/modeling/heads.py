"""Kinds of quality heads: networks from hidden states to one number, by the names that prism_config.json holds."""

import inspect
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prism_plugin.registry import require_name

# Hidden size, and what else the kind has settings for -> a network that gives one number for each position.
HEADS: dict[str, Callable[..., nn.Module]] = {}


def register_head(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Give the decorated function a name, which must never change afterwards: files hold it.

    The function takes `hidden_size` and, where the head has such a setting, `inner_size` (`PrismConfig.head_hidden_size`),
    `num_blocks` (`head_blocks`), `num_heads` (`head_num_heads`) and `num_taps` (the number of `head_taps`). It returns a module
    that maps [batch, length, hidden] to [batch, length, 1]. Its last linear layer with one output starts at the base rate. What
    its forward takes by name, it is given: `may_see`, a bool mask of the positions that a position may look at, [batch, length
    or 1, length], or None for all; `taps`, the hidden states of the layers in `head_taps`, a list.

    Raises:
        ConfigurationError: If the name is taken or malformed.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        require_name("head", name, HEADS)
        HEADS[name] = build
        return build

    return add


def head_settings(name: str) -> frozenset[str]:
    """What a kind of head has settings for, besides the hidden size."""
    return frozenset(inspect.signature(HEADS[name]).parameters) - {"hidden_size"}


def default_sizes(name: str, hidden_size: int) -> dict[str, int]:
    """The settings that a kind of head has where nobody gives others, by the names that its builder takes.

    Attention heads have 64 columns each, or are the next fewer that divide the hidden size.
    """
    num_heads = next(count for count in range(max(1, hidden_size // 64), 0, -1) if hidden_size % count == 0)
    defaults = {"inner_size": hidden_size, "num_blocks": 1, "num_heads": num_heads}
    return {setting: size for setting, size in defaults.items() if setting in head_settings(name)}


@register_head("mlp")
def mlp(hidden_size: int, inner_size: int) -> nn.Module:
    """LayerNorm, Linear, GELU, Linear: the head of the authors' PRISM_llada."""
    layers = (nn.Linear(hidden_size, inner_size), nn.GELU(), nn.Linear(inner_size, 1))
    return nn.Sequential(nn.LayerNorm(hidden_size), *layers)


@register_head("linear")
def linear(hidden_size: int) -> nn.Module:
    """LayerNorm, Linear."""
    return nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, 1))


@register_head("transformer")
class TransformerHead(nn.Module):
    """Transformer blocks, LayerNorm, Linear, as BackPlay has on a frozen backbone (arXiv 2601.06428).

    The blocks know no positions but those that the hidden states tell of, since they come after the backbone's own layers. A
    position looks at whatever the backbone's own attention lets it see.

    Args:
        hidden_size: Width of the hidden states.
        inner_size: Width of the blocks' hidden layers.
        num_blocks: Blocks, >= 1.
        num_heads: Attention heads, a divisor of the hidden size.
    """

    def __init__(self, hidden_size: int, inner_size: int, num_blocks: int = 1, num_heads: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(hidden_size, inner_size, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, 1)

    def forward(self, hidden_states: Tensor, may_see: Tensor | None = None) -> Tensor:
        """One number for each position."""
        mask = None if may_see is None else may_see.unsqueeze(1)
        for block in self.blocks:
            hidden_states = block(hidden_states, mask)
        return self.output(self.norm(hidden_states))


class _Block(nn.Module):
    """Attention to both sides and a hidden layer, each after a norm and added to what came in."""

    def __init__(self, hidden_size: int, inner_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.query_key_value, self.project = nn.Linear(hidden_size, 3 * hidden_size), nn.Linear(hidden_size, hidden_size)
        self.widen, self.narrow = nn.Linear(hidden_size, inner_size), nn.Linear(inner_size, hidden_size)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        parts = self.query_key_value(self.attention_norm(hidden_states)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden_states = hidden_states + self.project(attended.transpose(1, 2).flatten(-2))
        return hidden_states + self.narrow(F.gelu(self.widen(self.norm(hidden_states))))


@register_head("multi_tap")
class MultiTapHead(nn.Module):
    """The hidden states of several layers, each with a norm and a linear map of its own, GELU, Linear.

    RemeDi's second stream reads the layers of its backbone, too (arXiv 2509.23653), and writes back into them; this does not.

    Args:
        hidden_size: Width of the hidden states.
        inner_size: Width of the hidden layer.
        num_taps: Layers that are read besides the final hidden state.
    """

    def __init__(self, hidden_size: int, inner_size: int, num_taps: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_taps + 1))
        self.mix = nn.Linear((num_taps + 1) * hidden_size, inner_size)
        self.output = nn.Linear(inner_size, 1)

    def forward(self, hidden_states: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """One number for each position."""
        states = (norm(state) for norm, state in zip(self.norms, (hidden_states, *taps), strict=True))
        return self.output(F.gelu(self.mix(torch.cat(tuple(states), dim=-1))))


class HistoryEncoder(nn.Module):
    """Adds what a token has been through to its hidden state, in proportion to the size of that. It starts as no change.

    Args:
        hidden_size: Width of the hidden states.
        num_features: Numbers that tell of a position's history (`history_features`).
        inner_size: Width of the hidden layer.
    """

    def __init__(self, hidden_size: int, num_features: int, inner_size: int = 32) -> None:
        super().__init__()
        self.widen, self.output = nn.Linear(num_features, inner_size), nn.Linear(inner_size, hidden_size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden_states: Tensor, features: Tensor) -> Tensor:
        """The hidden states with their history."""
        size = hidden_states.detach().pow(2).mean(-1, keepdim=True).sqrt()  # heads begin with a norm, which takes it out again
        return hidden_states + size * self.output(F.gelu(self.widen(features)))
