"""QualityHead: final hidden state of a token -> logit of the probability that the token is right."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prism_plugin.core.history import History, history_features
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.heads import HEADS, HistoryEncoder, default_sizes
from prism_plugin.types import StatesAnywhere, ValuesAnywhere


class QualityHead(nn.Module):
    """A small network on the final hidden states (PRISM, arXiv 2510.01384, section 4), always in float32.

    It reads a probability that decides whether a token is thrown away, and it is tiny: lower precision buys nothing.
    The last layer starts at zero with its bias at the base rate's logit, so an untrained head calls every token as good
    as tokens are on average, and the first gradients are those of a calibrated constant.

    Args:
        hidden_size: Width of the backbone's hidden states.
        kind: A key of `HEADS`.
        sizes: What that kind has settings for, by the names that its builder takes; a width that is left out is `hidden_size`.
        history: What it reads of each token's history, of `HISTORY`.
        initial_logit: Output of the untrained head for every token, before it is scaled.
        temperature: Divides the logits, > 0: how sure the head sounds, fitted after training and no parameter.
        bias: Added after the division.

    Raises:
        ConfigurationError: If the kind has no linear layer with one output at its end, or its attention heads do not divide the
            hidden size.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        kind: str = "mlp",
        sizes: Mapping[str, int] | None = None,
        history: tuple[str, ...] = (),
        initial_logit: float = 0.0,
        temperature: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.temperature, self.bias = temperature, bias
        sizes = {**default_sizes(kind, hidden_size), **(sizes or {})}
        if hidden_size % sizes.get("num_heads", 1):
            raise ConfigurationError(
                f"`head_num_heads` must divide the backbone's width {hidden_size}, found {sizes['num_heads']}."
            )
        self.layers = HEADS[kind](hidden_size, **sizes).float()
        takes = inspect.signature(self.layers.forward).parameters
        self.reads_neighbours, self.reads_taps = "may_see" in takes, "taps" in takes
        self.reads_history = history
        if history:
            self.history = HistoryEncoder(hidden_size, num_features=2 + len(history)).float()
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
            sizes=config.head_sizes(),
            history=config.head_history,
            initial_logit=config.base_rate_logit,
            temperature=config.quality_temperature,
            bias=config.quality_bias,
        )

    def forward(
        self,
        hidden_states: StatesAnywhere,
        *,
        may_see: Tensor | None = None,
        taps: Sequence[Tensor] = (),
        history: History | None = None,
    ) -> ValuesAnywhere:
        """Return one logit per position, float32, scaled, on the head's device.

        Args:
            hidden_states: The final ones.
            may_see: For a head with `reads_neighbours`: which positions a position may look at, [batch, length or 1, length];
                None: all.
            taps: For a head with `reads_taps`: the hidden states of its layers.
            history: For a head with `reads_history`: what each token has been through; None: unknown.
        """
        device = next(self.layers.parameters()).device
        hidden_states, *taps = (states.to(device, torch.float32) for states in (hidden_states, *taps))
        more: dict[str, Any] = {"taps": taps} if self.reads_taps else {}
        if self.reads_neighbours:
            more["may_see"] = None if may_see is None else may_see.to(device)
        # a device without autocast has none to turn off, and torch refuses to try
        with torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext():
            if self.reads_history:
                features = history_features(history, self.reads_history, hidden_states)
                hidden_states = self.history(hidden_states, features)
            return self.layers(hidden_states, **more).squeeze(-1) / self.temperature + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QualityHead":
        """Let `to`, `half` and the like move the head to another device, never to another dtype."""

        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)
