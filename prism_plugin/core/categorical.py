"""Rows of logits -> one token each, its probability, and how sure the model is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prism_plugin.errors import ConfigurationError
from prism_plugin.types import Rows

# Entries of a chunk: what a draw keeps in float64 and int64 at a time then stays under 1 GB, whatever the vocabulary.
_CHUNK_ENTRIES = 2**24
# Probabilities become integers in units of 2**-52, the resolution of float64 below 1. Their running sum is then exact: it
# is the same on every device in every order of addition, and an id of probability 0 cannot be hit by rounding.
_UNITS = 2**52


@dataclass(frozen=True)
class RowStats:
    """What was drawn from each row: [rows] each; `entropy` and `margin` are None unless asked for."""

    candidates: Int[Tensor, " rows"]
    confidence: Float[Tensor, " rows"]
    entropy: Float[Tensor, " rows"] | None
    margin: Float[Tensor, " rows"] | None


def draw_rows(
    rows: Rows,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    forbidden_ids: tuple[int, ...] = (),
    uniforms: Float[Tensor, " rows"] | None = None,
    want_entropy: bool = False,
    want_margin: bool = False,
    chunk_rows: int = 4096,
) -> RowStats:
    """Draw a token from each row of logits.

    At temperature 0 the token is the argmax (the lowest id of equals) and neither `uniforms` nor `top_p` can change it.
    Otherwise it is the inverse of the cumulative distribution at the given uniform, in float64: one uniform, one token,
    whatever the other rows and the chunks. Confidence, entropy and margin describe the model and not the way of drawing:
    they are under the softmax at temperature 1 over the whole vocabulary without the forbidden ids.

    Args:
        rows: Logits of any float type; never changed.
        temperature: >= 0; divides the logits.
        top_p: Nucleus, in (0, 1]: the smallest set of the most probable tokens whose mass reaches `top_p` stays.
        forbidden_ids: Ids that get probability 0; the mask token is always one of them.
        uniforms: Uniform in [0, 1), one per row; needed when temperature > 0.
        want_entropy: Also give the entropy, in nats.
        want_margin: Also give the difference of the two largest probabilities.
        chunk_rows: Most rows worked on at once; fewer when the vocabulary is large.

    Raises:
        ConfigurationError: If a setting is out of range, or uniforms are needed and missing.
    """
    _check(rows, forbidden_ids, chunk_rows)
    _check_drawing(temperature, top_p, uniforms)
    parts: list[tuple[Tensor, ...]] = []
    for chunk, here in _chunks(rows, forbidden_ids, chunk_rows):
        if temperature == 0:
            candidates = chunk.argmax(-1)
        else:
            candidates = _inverse_cdf(torch.softmax(chunk.double() / temperature, -1), top_p, uniforms[here])
        log_total = chunk.logsumexp(-1)
        stats = [candidates, _confidence(chunk, candidates, log_total)]
        if want_entropy:
            stats.append(torch.special.entr(torch.softmax(chunk, -1)).sum(-1).float())
        if want_margin:
            largest = (chunk.topk(min(2, chunk.shape[-1])).values - log_total.unsqueeze(-1)).exp()
            stats.append((largest[:, 0] - largest[:, 1:].sum(-1)).float())
        parts.append(tuple(stats))
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    candidates, confidence = joined[:2]
    return RowStats(
        candidates, confidence, entropy=joined[2] if want_entropy else None, margin=joined[-1] if want_margin else None
    )


def token_confidence(
    rows: Rows, token_ids: Int[Tensor, " rows"], *, forbidden_ids: tuple[int, ...] = (), chunk_rows: int = 4096
) -> Float[Tensor, " rows"]:
    """Give the probability of one given token per row, under the same softmax as the confidence of `draw_rows`.

    Args:
        rows: Logits of any float type; never changed.
        token_ids: The token of each row.
        forbidden_ids: Ids that get probability 0.
        chunk_rows: Most rows worked on at once.

    Returns:
        float32 in [0, 1].
    """
    _check(rows, forbidden_ids, chunk_rows)
    return torch.cat(
        [_confidence(chunk, token_ids[here], chunk.logsumexp(-1)) for chunk, here in _chunks(rows, forbidden_ids, chunk_rows)]
    )


def _chunks(rows: Rows, forbidden_ids: tuple[int, ...], chunk_rows: int) -> Iterator[tuple[Rows, slice]]:
    """Yield copies of some rows in at least float32, forbidden ids at -inf; one empty chunk when there is no row."""
    size = max(1, min(chunk_rows, _CHUNK_ENTRIES // rows.shape[-1]))
    for start in range(0, max(rows.shape[0], 1), size):
        here = slice(start, start + size)
        chunk = rows[here].to(torch.promote_types(rows.dtype, torch.float32), copy=True)
        for token_id in forbidden_ids:  # a handful; an index tensor would have to be copied to the device
            chunk[:, token_id] = float("-inf")
        yield chunk, here


def _confidence(chunk: Rows, token_ids: Int[Tensor, " rows"], log_total: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    return (chunk.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - log_total).exp().float()


def _inverse_cdf(
    probabilities: Float[Tensor, "rows vocab"], top_p: float, uniforms: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    weights = (probabilities * _UNITS).long()
    if top_p < 1:
        weights = _keep_nucleus(weights, top_p)
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    # a uniform that was rounded up to 1 on its way here draws the last id that has any weight
    wanted = (uniforms.double() * total.double()).long().minimum(total - 1)
    return torch.searchsorted(cumulative, wanted.unsqueeze(-1), right=True).squeeze(-1)


def _keep_nucleus(weights: Int[Tensor, "rows vocab"], top_p: float) -> Int[Tensor, "rows vocab"]:
    """Set to 0 all but the largest weights that together reach the share `top_p`; equal weights stay by lowest id."""
    largest, order = weights.sort(dim=-1, descending=True, stable=True)
    mass_before = largest.cumsum(-1) - largest
    kept = mass_before < top_p * largest.sum(-1, keepdim=True)
    return torch.zeros_like(weights).scatter(-1, order, largest * kept)


def _check(rows: Rows, forbidden_ids: tuple[int, ...], chunk_rows: int) -> None:
    vocab = rows.shape[-1]
    if any(not 0 <= token_id < vocab for token_id in forbidden_ids) or len(set(forbidden_ids)) >= vocab:
        raise ConfigurationError(f"`forbidden_ids` must be ids below {vocab} and leave one to draw, found {forbidden_ids}.")
    if chunk_rows < 1:
        raise ConfigurationError(f"`chunk_rows` must be at least 1, found {chunk_rows}.")


def _check_drawing(temperature: float, top_p: float, uniforms: Float[Tensor, " rows"] | None) -> None:
    if not 0 <= temperature < math.inf:
        raise ConfigurationError(f"`temperature` must be 0 (argmax) or a finite number above, found {temperature}.")
    if not 0 < top_p <= 1:
        raise ConfigurationError(f"`top_p` must be in (0, 1], found {top_p}.")
    if temperature > 0 and uniforms is None:
        raise ConfigurationError(f"Drawing at temperature {temperature} needs `uniforms`, one number per row; found None.")
