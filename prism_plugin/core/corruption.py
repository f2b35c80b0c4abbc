"""Masking of clean tokens, the forward process of a masked diffusion model."""

from dataclasses import dataclass

import torch

from prism_plugin.core.validation import require_tensors
from prism_plugin.errors import ConfigurationError
from prism_plugin.types import PerToken, Times, TokenIds, TokenMask


@dataclass(frozen=True)
class MaskedTokens:
    """A noised batch: `noised_ids`, the positions `masked` in it, and the masking probability `t` of each row."""

    noised_ids: TokenIds
    masked: TokenMask
    t: Times


def draw_times(noise: Times, t_min: float, t_max: float) -> Times:
    """Map uniforms to masking probabilities, uniform in [t_min, t_max].

    Args:
        noise: Uniform in [0, 1), one per row.
        t_min: Smallest probability, > 0, since the loss is weighted by 1/t.
        t_max: Largest probability, <= 1.

    Raises:
        ConfigurationError: If not 0 < t_min <= t_max <= 1.
    """
    if not 0 < t_min <= t_max <= 1:
        raise ConfigurationError(f"Masking probabilities need 0 < t_min <= t_max <= 1, found t_min={t_min}, t_max={t_max}.")
    return t_min + (t_max - t_min) * noise


def mask_tokens(clean_ids: TokenIds, maskable: TokenMask, *, mask_token_id: int, t: Times, noise: PerToken) -> MaskedTokens:
    """Replace each maskable token by the mask with probability `t` of its row, independently.

    Args:
        clean_ids: Tokens of the data.
        maskable: Positions that may be corrupted; prompt and padding are not.
        mask_token_id: Id of the mask token.
        t: Masking probability per row, in (0, 1].
        noise: Uniform in [0, 1), one number per position. The same numbers give the same masks.

    Raises:
        ConfigurationError: If one of them is no tensor, `maskable` is no bool tensor, or a probability is out of range or NaN.
            On an accelerator, where reading it would make the host wait, the probabilities are not checked.
    """
    require_tensors("mask_tokens", clean_ids=clean_ids, maskable=maskable, t=t, noise=noise)
    if maskable.dtype != torch.bool:
        raise ConfigurationError(f"`maskable` of mask_tokens must be a bool tensor, found {maskable.dtype}; use `.bool()`.")
    if t.device.type == "cpu" and not ((t > 0) & (t <= 1)).all():
        raise ConfigurationError(f"Masking probabilities `t` must lie in (0, 1], found {t.tolist()}.")
    masked = maskable & (noise < t.unsqueeze(-1))
    return MaskedTokens(noised_ids=torch.where(masked, mask_token_id, clean_ids), masked=masked, t=t)
