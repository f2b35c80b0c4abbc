"""QualityHead: final hidden state of a token -> logit of the probability that the token is right."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.heads import HEADS, has_inner_size
from prism_plugin.types import StatesAnywhere, ValuesAnywhere


class QualityHead(nn.Module):
    """A small network on the final hidden states (PRISM, arXiv 2510.01384, section 4), always in float32.

    It reads a probability that decides whether a token is thrown away, and it is tiny: lower precision buys nothing.
    The last layer starts at zero with its bias at the base rate's logit, so an untrained head calls every token as good
    as tokens are on average, and the first gradients are those of a calibrated constant.

    Args:
        hidden_size: Width of the backbone's hidden states.
        kind: A key of `HEADS`: "mlp" for LayerNorm, Linear, GELU, Linear; "linear" for LayerNorm, Linear.
        inner_size: Width of its hidden layer, for a kind that has one; None: `hidden_size`.
        initial_logit: Output of the untrained head for every token, before it is scaled.
        temperature: Divides the logits, > 0: how sure the head sounds, fitted after training and no parameter.
        bias: Added after the division.

    Raises:
        ConfigurationError: If the kind has no linear layer with one output at its end.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        kind: str = "mlp",
        inner_size: int | None = None,
        initial_logit: float = 0.0,
        temperature: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.temperature, self.bias = temperature, bias
        sizes = {"inner_size": inner_size or hidden_size} if has_inner_size(kind) else {}
        self.layers = HEADS[kind](hidden_size, **sizes).float()
        linear = [module for module in self.layers.modules() if isinstance(module, nn.Linear)]
        if not linear or linear[-1].out_features != 1 or linear[-1].bias is None:
            raise ConfigurationError(
                f"The last linear layer of a head gives one number and has a bias, but that of {kind!r} does not; end it with "
                "`nn.Linear(width, 1)`."
            )
        nn.init.zeros_(linear[-1].weight)
        nn.init.constant_(linear[-1].bias, initial_logit)

    @classmethod
    def from_config(cls, config: PrismConfig) -> "QualityHead":
        """Make the head that a config describes; its `backbone_hidden_size` must be filled in."""
        return cls(
            config.backbone_hidden_size,  # type: ignore[arg-type]  # filled in, as said above
            kind=config.head,
            inner_size=config.head_hidden_size,
            initial_logit=config.base_rate_logit,
            temperature=config.quality_temperature,
            bias=config.quality_bias,
        )

    def forward(self, hidden_states: StatesAnywhere) -> ValuesAnywhere:
        """Return one logit per position, float32, scaled, on the head's device."""
        device = next(self.layers.parameters()).device
        # a device without autocast has none to turn off, and torch refuses to try
        with torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext():
            return self.layers(hidden_states.to(device, torch.float32)).squeeze(-1) / self.temperature + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QualityHead":
        """Let `to`, `half` and the like move the head to another device, never to another dtype."""

        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)
