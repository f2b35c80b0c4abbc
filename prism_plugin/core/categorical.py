"""Rows of logits -> one token each, its probability, and how sure the model is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_plugin.core.float64 import to_float64
from prism_plugin.core.forbidding import MOST_RUNS, Forbidden, HeldBack
from prism_plugin.errors import ConfigurationError
from prism_plugin.types import DrawnIndex, DrawnTokens, DrawnValues, Rows, RowTokens, RowUnits, RowValues

# Entries of a chunk. On the CPU one of 4 MB in float32 takes least: in smaller ones the small operations around the passes
# count, and much larger ones leave the cache; an accelerator wants few and large kernels. What a draw keeps of a chunk, up to
# five times its size in 8 bytes each, stays under 400 MB whatever the vocabulary.
_CHUNK_ENTRIES_CPU, _CHUNK_ENTRIES = 2**20, 2**23
# Columns that are reduced together. In two levels the CPU finds an argmax at the speed of a maximum, and a sum is added up in
# one order, whatever the number of rows and threads.
_BLOCK = 256
# Blocks with forbidden ids that are copied one by one; with more of them, the whole chunk is.
_MOST_BLOCKS = 8
# A row whose largest logit lies between these needs no shift before `exp` in float32: the sum over a vocabulary is far from
# overflow, and a token of probability 1e-30 is far from 0.
_LOWEST_PLAIN, _HIGHEST_PLAIN = -10.0, 60.0
# Probabilities become integers in units of 2**-52, the resolution of float64 below 1. Their running sum is then exact: it
# is the same on every device in every order of addition, and an id of probability 0 cannot be hit by rounding.
_UNITS = 2**52


@dataclass(frozen=True)
class RowStats:
    """What was drawn from each row: [rows] each; `entropy` and `margin` are None unless asked for."""

    candidates: RowTokens
    confidence: RowValues
    entropy: RowValues | None
    margin: RowValues | None


def draw_rows(
    rows: Rows,
    *,
    at: DrawnIndex | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    forbidden_ids: tuple[int, ...] = (),
    held_back: HeldBack | None = None,
    uniforms: DrawnValues | None = None,
    want_entropy: bool = False,
    want_margin: bool = False,
    chunk_rows: int = 4096,
) -> RowStats:
    """Draw a token from each row of logits.

    At temperature 0 the token is the argmax (the lowest id of equals) and neither `uniforms` nor `top_p` can change it.
    Otherwise it is the inverse of the cumulative distribution at the given uniform, in float64: one uniform, one token,
    whatever the other rows and the chunks. Confidence, entropy and margin describe the model and not the way of drawing:
    they are under the softmax at temperature 1 over the whole vocabulary without the forbidden ids.

    Nothing of the size of `rows` is made: the work goes through the rows once, a chunk at a time.

    Args:
        rows: Logits of any float type; never changed.
        at: Numbers of the rows to draw from, in the order of the results; None: all.
        temperature: >= 0; divides the logits.
        top_p: Nucleus, in (0, 1]: the smallest set of the most probable tokens whose mass reaches `top_p` stays.
        forbidden_ids: Ids that get probability 0; the mask token is always one of them.
        held_back: Ids that get probability 0 in some of the rows.
        uniforms: Uniform in [0, 1), one per drawn row, where the rows are or where their float64 is; needed when
            temperature > 0.
        want_entropy: Also give the entropy, in nats.
        want_margin: Also give the difference of the two largest probabilities.
        chunk_rows: Most rows worked on at once; fewer when the vocabulary is large.

    Raises:
        ConfigurationError: If a setting is out of range, or uniforms are needed and missing.
    """
    forbidden = _checked(rows, forbidden_ids, held_back, chunk_rows)
    _check_drawing(temperature, top_p, uniforms)
    parts: list[tuple[Tensor, ...]] = []
    room = Room()
    for chunk, here in _chunks(rows, at, chunk_rows):
        not_these = forbidden.at(here)
        largest, argmax = _first_max(chunk, not_these)
        candidates = argmax
        if temperature > 0:
            scaled = not_these.write(to_float64(chunk, copy=True)).div_(temperature)
            own = to_float64(uniforms[here])  # type: ignore[index]  # there, as `_check_drawing` saw to
            candidates = _inverse_cdf(torch.softmax(scaled, -1), top_p, own).to(chunk.device)
        weights = _weights(chunk, _shift(largest), not_these, room)
        total = _sum(weights)
        stats = [candidates, (_at(weights, candidates) / total).float()]
        if want_entropy:
            stats.append(_sum(torch.special.entr(weights / total.unsqueeze(-1))).float())
        if want_margin:
            first = _at(weights, argmax)
            second = weights.scatter_(-1, argmax.unsqueeze(-1), 0.0).amax(-1)
            stats.append(((first - second) / total).float())
        parts.append(tuple(stats))
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    candidates, confidence = joined[:2]
    return RowStats(
        candidates, confidence, entropy=joined[2] if want_entropy else None, margin=joined[-1] if want_margin else None
    )


def most_probable(rows: Rows, *, forbidden_ids: tuple[int, ...] = (), chunk_rows: int = 4096) -> RowTokens:
    """Give the most probable token of each row, as `draw_rows` does at temperature 0, and nothing besides.

    Args:
        rows: Logits of any float type; never changed.
        forbidden_ids: Ids that are never given.
        chunk_rows: Most rows worked on at once.
    """
    forbidden = _checked(rows, forbidden_ids, None, chunk_rows)
    return torch.cat([_first_max(chunk, forbidden.at(here))[1] for chunk, here in _chunks(rows, None, chunk_rows)])


def token_confidence(
    rows: Rows,
    token_ids: DrawnTokens,
    *,
    at: DrawnIndex | None = None,
    forbidden_ids: tuple[int, ...] = (),
    held_back: HeldBack | None = None,
    chunk_rows: int = 4096,
) -> DrawnValues:
    """Give the probability of one given token per row, under the same softmax as the confidence of `draw_rows`.

    Args:
        rows: Logits of any float type; never changed.
        token_ids: The token of each row that is asked about.
        at: Numbers of the rows that are asked about; None: all.
        forbidden_ids: Ids that get probability 0.
        held_back: Ids that get probability 0 in some of the rows.
        chunk_rows: Most rows worked on at once.

    Returns:
        float32 in [0, 1].
    """
    forbidden = _checked(rows, forbidden_ids, held_back, chunk_rows)
    parts, room = [], Room()
    for chunk, here in _chunks(rows, at, chunk_rows):
        largest, _ = _first_max(chunk, forbidden.at(here))
        weights = _weights(chunk, _shift(largest), forbidden.at(here), room)
        parts.append((_at(weights, token_ids[here]) / _sum(weights)).float())
    return torch.cat(parts)


def log_sum_exp(rows: Rows, at: DrawnIndex | None = None) -> DrawnValues:
    """Logarithm of the sum of exponentials of each row, float32; nothing of the size of `rows` is made.

    Args:
        rows: Logits.
        at: Numbers of the rows that are asked about; None: all.
    """
    parts, room = [], Room()
    for chunk, _ in _chunks(rows, at, 4096):
        shift = _shift(chunk.amax(-1))
        parts.append((shift + _sum(_weights(chunk, shift, Forbidden(()), room)).log()).float())
    return torch.cat(parts)


class Room:
    """Memory in which one chunk after the other is worked on: on the CPU, new memory for each costs as much as the work."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def of(self, rows: Tensor, count: int | None = None) -> Tensor | None:
        """Some rows of the width and dtype of others, holding anything; None where a gradient is wanted of what comes there.

        Args:
            rows: What is worked on: each time of one width and one dtype.
            count: Rows, not more than at first; None: as many as there are.
        """
        if rows.requires_grad and torch.is_grad_enabled():
            return None
        count = rows.shape[0] if count is None else count
        if self._memory is None:
            self._memory = rows.new_empty(count, rows.shape[-1])
        return self._memory[:count]


def chunk_slices(rows: Rows, count: int | None = None, most: int = 4096) -> Iterator[slice]:
    """Cut rows of logits into pieces to work on one at a time, at most `most` rows each; one empty piece when there is none.

    Args:
        rows: Logits.
        count: Rows in all; None: those of `rows`.
        most: Most rows in a piece, >= 1.
    """
    entries = _CHUNK_ENTRIES_CPU if rows.device.type == "cpu" else _CHUNK_ENTRIES
    size = max(1, min(most, entries // rows.shape[-1]))
    for start in range(0, max(rows.shape[0] if count is None else count, 1), size):
        yield slice(start, start + size)


def _chunks(rows: Rows, at: DrawnIndex | None, chunk_rows: int) -> Iterator[tuple[Rows, slice]]:
    """Yield some rows at a time, to be read only, in at least float32; one empty chunk when there is no row."""
    room = Room()
    for here in chunk_slices(rows, None if at is None else at.shape[0], chunk_rows):
        some = None if at is None else at[here]
        chunk = rows[here] if some is None else torch.index_select(rows, 0, some, out=room.of(rows, some.shape[0]))
        yield chunk.to(torch.promote_types(rows.dtype, torch.float32)), here


def _first_max(chunk: Rows, forbidden: Forbidden) -> tuple[RowValues, RowTokens]:
    """The largest entry of each row that is not forbidden, and the lowest id that has it. Copies only blocks with such ids."""
    whole = chunk.shape[-1] // _BLOCK * _BLOCK
    touched = forbidden.blocks(_BLOCK, whole)
    if len(touched) > _MOST_BLOCKS or len(forbidden.everywhere) > MOST_RUNS:
        chunk, touched, forbidden = forbidden.write(chunk.clone()), [], Forbidden(())
    rest = forbidden.between(whole, chunk.shape[-1]).write(chunk[:, whole:].clone())
    if whole == 0:
        largest, argmax = rest.max(-1)
        return largest, argmax
    in_blocks = chunk[:, :whole].unflatten(-1, (-1, _BLOCK))
    peaks = in_blocks.amax(-1)
    for number in touched:
        inside = forbidden.between(number * _BLOCK, (number + 1) * _BLOCK)
        peaks[:, number] = inside.write(in_blocks[:, number].clone()).amax(-1)
    columns = peaks.argmax(-1, keepdim=True) * _BLOCK + torch.arange(_BLOCK, device=chunk.device)
    largest, place = forbidden.between(0, whole).write_at(chunk.gather(-1, columns), columns).max(-1)
    argmax = columns[:, 0] + place
    if whole < chunk.shape[-1]:
        of_rest, place = rest.max(-1)
        argmax = torch.where(of_rest > largest, place + whole, argmax)
        largest = torch.maximum(of_rest, largest)
    return largest, argmax


def _shift(largest: RowValues) -> RowValues:
    """What is taken from a row's logits before `exp`: nothing where the largest is neither huge nor tiny. NaN stays NaN."""
    return torch.where((largest >= _LOWEST_PLAIN) & (largest <= _HIGHEST_PLAIN), 0.0, largest)


def _weights(chunk: Rows, shift: RowValues, forbidden: Forbidden, room: Room) -> Rows:
    """What each row's softmax is proportional to: exp(logit - shift), 0 for what is forbidden.

    Where no row of the chunk is shifted, the CPU is spared a pass over it. Taking 0 away changes nothing, so a row's weights do
    not depend on its neighbours; an accelerator, which would have to wait to know, makes the pass.
    """
    if is_at_hand(shift) and not shift.any():
        return forbidden.write(torch.exp(chunk, out=room.of(chunk)), 0.0)
    return forbidden.write(torch.sub(chunk, shift.unsqueeze(-1), out=room.of(chunk))).exp_()


def is_at_hand(values: Tensor) -> bool:
    """Whether a branch may depend on the values: they are here, and computed. Tensors without data are of another class."""
    return values.device.type == "cpu" and type(values) is Tensor


def _at(rows: Rows, columns: RowTokens) -> RowValues:
    return rows.gather(-1, columns.unsqueeze(-1)).squeeze(-1)


def _sum(chunk: Rows) -> RowValues:
    """The sum of each row, in an order that does not depend on the number of rows."""
    whole = chunk.shape[-1] // _BLOCK * _BLOCK
    in_blocks = chunk[:, :whole].unflatten(-1, (-1, _BLOCK))
    return in_blocks.sum(-1).sum(-1) + chunk[:, whole:].sum(-1)


def _inverse_cdf(probabilities: Rows, top_p: float, uniforms: RowValues) -> RowTokens:
    weights = probabilities.mul_(_UNITS).long()
    if top_p < 1:
        weights = _keep_nucleus(weights, top_p)
    cumulative = weights.cumsum_(-1)
    total = cumulative[:, -1]
    # a uniform that was rounded up to 1 on its way here draws the last id that has any weight
    wanted = (uniforms * total.double()).long().minimum(total - 1)
    found = torch.searchsorted(cumulative, wanted.unsqueeze(-1), right=True).squeeze(-1)
    return found.clamp(max=weights.shape[-1] - 1)  # NaN has no order, and whoever checks for it needs an id that exists


def _keep_nucleus(weights: RowUnits, top_p: float) -> RowUnits:
    """Set to 0 all but the largest weights that together reach the share `top_p`; equal weights stay by lowest id."""
    largest, order = weights.sort(dim=-1, descending=True, stable=True)
    mass_before = largest.cumsum(-1) - largest
    kept = mass_before < top_p * largest.sum(-1, keepdim=True)
    return torch.zeros_like(weights).scatter(-1, order, largest * kept)


def _checked(rows: Rows, forbidden_ids: tuple[int, ...], held_back: HeldBack | None, chunk_rows: int) -> Forbidden:
    vocab = rows.shape[-1]
    for name, ids in (("forbidden_ids", forbidden_ids), ("held_back", held_back.ids if held_back else ())):
        if any(not 0 <= one < vocab for one in ids) or len({*forbidden_ids, *ids}) >= vocab:
            raise ConfigurationError(f"`{name}` must be ids below {vocab} and leave one to draw, found {ids}.")
    if chunk_rows < 1:
        raise ConfigurationError(f"`chunk_rows` must be at least 1, found {chunk_rows}.")
    return Forbidden.of(forbidden_ids, held_back)


def _check_drawing(temperature: float, top_p: float, uniforms: DrawnValues | None) -> None:
    if not 0 <= temperature < math.inf:
        raise ConfigurationError(f"`temperature` must be 0 (argmax) or a finite number above, found {temperature}.")
    if not 0 < top_p <= 1:
        raise ConfigurationError(f"`top_p` must be in (0, 1], found {top_p}.")
    if temperature > 0 and uniforms is None:
        raise ConfigurationError(f"Drawing at temperature {temperature} needs `uniforms`, one number per row; found None.")
