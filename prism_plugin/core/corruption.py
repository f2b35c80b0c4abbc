"""Masking of clean tokens, the forward process of a masked diffusion model; and what a corruption did, for whoever learns."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from prism_plugin.core.history import History
from prism_plugin.core.selection import select_top
from prism_plugin.core.soft import SoftTokens
from prism_plugin.core.validation import require_tensors
from prism_plugin.errors import ConfigurationError
from prism_plugin.types import PerToken, Times, TokenIds, TokenMask


@runtime_checkable
class Noise(Protocol):
    """Name of a draw -> uniforms in [0, 1), `count` for each row, or one per position: a function of the example alone."""

    def __call__(self, name: str, count: int | None = None) -> Tensor: ...


@dataclass(frozen=True)
class MaskedTokens:
    """A noised batch: `noised_ids`, the positions `masked` in it, and the masking probability `t` of each row."""

    noised_ids: TokenIds
    masked: TokenMask
    t: Times


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """What a look sees in training, and what is known of it. All tensors begin with the drafts times the rows of the batch.

    With several drafts of each row, all rows of draft 0 come first.

    Attributes:
        ids: Tokens that the network sees.
        clean_ids: Tokens of the data.
        attention_mask: 1 where there is a token, 0 at padding, [rows, length].
        maskable: Positions that may be corrupted; prompt and padding are not.
        masked: Positions that hold the mask token in `ids`.
        masked_before: Positions that held it before a draft filled some; the same as `masked` where nothing was filled.
        drafted: Positions whose token was written by the model, or by a corruption in its place.
        t: Masking probability of each row, in (0, 1].
        noise: Uniforms of each row by name, for terms that want chance.
        history: What the tokens have been through; None where that is unknown.
        soft: What the network sees in place of some tokens' embeddings; None: nothing.
    """

    ids: TokenIds
    clean_ids: TokenIds
    attention_mask: Tensor
    maskable: TokenMask
    masked: TokenMask
    masked_before: TokenMask
    drafted: TokenMask
    t: Times
    noise: Noise
    history: History | None = None
    soft: SoftTokens | None = None

    @property
    def visible(self) -> TokenMask:
        """Positions that could have been corrupted and hold a token."""
        return self.maskable & ~self.masked


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


def mask_after_prefix(
    clean_ids: TokenIds, maskable: TokenMask, *, mask_token_id: int, t: Times, noise: PerToken
) -> MaskedTokens:
    """Order the maskable positions at random and mask all that come after a prefix (MaPeT, arXiv 2306.07346).

    The number of masks is given and not drawn: ceil(t * n) of n positions, each such set equally likely, as a sampler in random
    order meets them. With t uniform the weight 1/t gives the likelihood bound with less variance than independent masks (LLaDA,
    arXiv 2502.09992, equation 6).

    Args:
        clean_ids: Tokens of the data.
        maskable: Positions that may be corrupted; prompt and padding are not.
        mask_token_id: Id of the mask token.
        t: Share to mask of each row, in (0, 1], rounded up to a number of positions.
        noise: Uniform in [0, 1), one number per position, by which the positions are ordered.

    Returns:
        As `mask_tokens`; `t` is the share that was masked, and as it was given where nothing may be masked.
    """
    number = maskable.sum(-1)
    # less a little before rounding up, so that float32 does not turn 0.1 of 10 positions into 2
    count = (t * number - 1e-4).ceil().clamp(min=1).long().minimum(number)
    masked = select_top(noise, maskable, count)
    share = torch.where(number > 0, count / number.clamp(min=1), t)
    return MaskedTokens(noised_ids=torch.where(masked, mask_token_id, clean_ids), masked=masked, t=share)


def other_tokens(clean_ids: TokenIds, known_ids: Tensor, noise: PerToken) -> TokenIds:
    """Draw a wrong token for every position, each other one of some equally likely.

    Args:
        clean_ids: Tokens of the data, which are not drawn at their own positions.
        known_ids: Tokens to draw from, two or more, in ascending order, [tokens].
        noise: Uniform in [0, 1), one number per position.
    """
    place = torch.searchsorted(known_ids, clean_ids).clamp(max=len(known_ids) - 1)
    is_known = known_ids[place] == clean_ids
    number = len(known_ids) - is_known.long()
    drawn = (noise.double() * number).long().minimum(number - 1)
    return known_ids[drawn + (is_known & (drawn >= place)).long()]
