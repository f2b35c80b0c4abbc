"""One row's generation as data: what was filled, taken back and judged at each look, for a page that replays it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from prism_plugin.errors import ConfigurationError
from prism_plugin.report.pieces import token_pieces
from prism_plugin.sampling import RemaskingSampler, SamplerOutput, SamplerSettings, StepRecord

# Below this quality a token is shown as doubted, unless the sampler's rule has a threshold of its own.
DOUBT_BELOW = 0.5


@dataclass(frozen=True)
class Look:
    """What one look did to a row. Positions count the row's own tokens from 0; pieces are indices into `pieces`.

    Attributes:
        filled: [position, piece, confidence per mille] of each mask that was filled.
        overwritten: [position, piece, piece that stood there, confidence per mille] of each token that took another's place.
        taken_back: Positions masked again.
        why: [position, scores in words] of what was overwritten or taken back, where a rule reads more than the quality.
        num_forwards: Calls of the network.
        padded: [position, piece] of what was written after an EOS when its block was closed.
        quality: Per mille, for each position of `Generation.editable`, of the tokens that this look saw; -1 where it saw a
            mask or did not judge. None where no rule reads quality.
    """

    filled: list[list[int]]
    overwritten: list[list[int]]
    taken_back: list[int]
    padded: list[list[int]]
    quality: list[int] | None
    why: list[list[int | str]]
    num_forwards: int


@dataclass(frozen=True)
class Generation:
    """One row from its first look to its last.

    Attributes:
        name: Shown where a page holds several.
        pieces: Texts of the distinct tokens.
        start: Piece of each position before the first look.
        editable: Positions that were generated.
        looks: In order.
        columns: Positions in a line of a grid; None for text.
        doubt_below: Quality per mille below which a token counts as doubted.
        settings: Of the sampler, by name.
    """

    name: str
    pieces: list[str]
    start: list[int]
    editable: list[int]
    looks: list[Look]
    columns: int | None
    doubt_below: int
    settings: dict[str, str]

    def figures(self) -> dict[str, int]:
        """Sum the generation up.

        Returns:
            Looks and forward passes, tokens generated, times that a token was taken back, positions at which that happened,
            times that one was overwritten, and positions whose last token is another one than the first written there.
        """
        taken_back = [position for look in self.looks for position in look.taken_back]
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for look in self.looks:
            for position, piece, *_ in look.filled + look.overwritten + look.padded:
                first.setdefault(position, piece)
                last[position] = piece
        return {
            "num_looks": len(self.looks),
            "num_forward_passes": sum(look.num_forwards for look in self.looks),
            "num_generated": len(self.editable),
            "num_remasked": len(taken_back),
            "num_positions_remasked": len(set(taken_back)),
            "num_overwritten": sum(len(look.overwritten) for look in self.looks),
            "num_changed": sum(first[position] != last[position] for position in last),
        }

    def final_text(self) -> str:
        """The row's last state, as one text."""
        pieces = list(self.start)
        for look in self.looks:
            for position, piece, *_ in look.filled + look.overwritten + look.padded:
                pieces[position] = piece
        return "".join(self.pieces[piece] for piece in pieces)

    def to_dict(self) -> dict[str, Any]:
        """Write as plain values, for JSON."""
        return asdict(self) | {"figures": self.figures(), "final_text": self.final_text()}


def trace_generation(
    output: SamplerOutput,
    row: int,
    sampler: RemaskingSampler,
    *,
    attention_mask: Tensor | None = None,
    columns: int | None = None,
    name: str = "",
) -> Generation:
    """Follow one row through the trace of a request.

    Args:
        output: Of a request with `return_trace=True`.
        row: Number of the row in the batch.
        sampler: Which gave it. Without a tokenizer of its model, tokens are shown by their numbers.
        attention_mask: As it was passed to the sampler, padded with ones over the new tokens; None without padding.
        columns: Positions in a line of a grid, >= 1; None for text.
        name: Shown where a page holds several.

    Raises:
        ConfigurationError: If the output has no trace, or the row does not fill whole lines of `columns`.
    """
    if not output.trace:
        raise ConfigurationError(
            "a page needs the looks of the request, found no trace; pass `return_trace=True` to the sampler."
        )
    trace, model = output.trace, sampler.model
    own = slice(None) if attention_mask is None else attention_mask[row].cpu().bool()
    start = trace[0].tokens_before[row][own]
    require_lines(len(start), columns)
    records = [record for record in trace if record.looked[row]]
    seen = torch.stack([start, *(record.tokens_after[row][own] for record in records)])
    texts = token_pieces(model.tokenizer, seen.unique().tolist())
    number = {token: index for index, token in enumerate(texts)}
    editable = (start == model.mask_token_id).nonzero().squeeze(-1)
    return Generation(
        name=name,
        pieces=list(texts.values()),
        start=[number[token] for token in start.tolist()],
        editable=editable.tolist(),
        looks=[_look(record, row, own, editable, number, model.mask_token_id) for record in records],
        columns=columns,
        doubt_below=round(doubt_below(sampler) * 1000),
        # as Python writes them: a rule without a name, such as a lambda, can be shown though it cannot be saved
        settings={field.name: repr(getattr(sampler, field.name)) for field in fields(SamplerSettings)},
    )


def doubt_below(settings: SamplerSettings) -> float:
    """The quality below which a token counts as doubted: the remasking rule's own threshold, else `DOUBT_BELOW`."""
    takes_quality = "quality" in getattr(settings.remasking, "needs", ())
    return getattr(settings.remasking, "threshold", DOUBT_BELOW) if takes_quality else DOUBT_BELOW


def require_lines(length: int, columns: int | None) -> None:
    """Check that a row can be laid out as a grid.

    Raises:
        ConfigurationError: If `length` is no multiple of `columns`.
    """
    if columns is not None and (columns < 1 or length % columns):
        raise ConfigurationError(
            f"a grid of {columns} columns needs rows of a multiple of as many tokens, found {length}; choose another number of "
            "columns, or none to show a text."
        )


def _in_words(scores: Mapping[str, Tensor], at: int) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {float(score[at]):.3f}" for name, score in scores.items())


def _look(record: StepRecord, row: int, own: Any, editable: Tensor, number: dict[int, int], mask_token_id: int) -> Look:
    before, after = record.tokens_before[row][own], record.tokens_after[row][own]
    unmasked, remasked = record.unmasked[row][own], record.remasked[row][own]
    confidence = record.confidence[row][own]
    padded = (before != after) & ~unmasked & ~remasked
    was_mask = torch.isin(torch.arange(len(before)), editable) & (before == mask_token_id)
    overwritten = unmasked & ~was_mask & (before != after)
    scores = {name: score[row][own] for name, score in record.scores.items()}
    return Look(
        filled=[[at, number[int(after[at])], _per_mille(confidence[at])] for at in _where(unmasked & was_mask)],
        overwritten=[
            [at, number[int(after[at])], number[int(before[at])], _per_mille(confidence[at])] for at in _where(overwritten)
        ],
        why=[[at, _in_words(scores, at)] for at in _where(remasked | overwritten)] if scores else [],
        num_forwards=int(record.num_forwards[row]),
        taken_back=_where(remasked),
        padded=[[at, number[int(after[at])]] for at in _where(padded)],
        quality=None if record.quality is None else [_per_mille(value) for value in record.quality[row][own][editable]],
    )


def _where(marked: Tensor) -> list[int]:
    return marked.nonzero().squeeze(-1).tolist()


def _per_mille(probability: Tensor) -> int:
    return -1 if probability.isnan() else round(float(probability) * 1000)
