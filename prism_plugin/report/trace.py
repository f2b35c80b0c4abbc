"""One row's generation as data: what was filled, taken back and judged at each look, for a page that replays it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from prism_plugin.errors import ConfigurationError
from prism_plugin.report.pieces import token_pieces
from prism_plugin.sampling import ParticleOutput, RemaskingSampler, SamplerOutput, SamplerSettings, StepRecord

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
        num_forwards: Calls of the network; 0 where this run took no part while another of its row did.
        padded: [position, piece] of what was written after an EOS when its block was closed.
        copied: [position, piece] of what stands otherwise than after the look before, piece -1 for a mask: where several runs
            of a row were resampled, or begun anew.
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
    copied: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """Which of several runs of a row a generation is.

    Attributes:
        number: Of the run, from 0.
        of: How many there are.
        kept: It is what the request was answered with.
        score: What it is worth in the end.
        weighings: [looks before, share of the weight, number of the run that was copied], in order.
        num_forward_passes: Of all runs together, with those that only judged.
    """

    number: int
    of: int
    kept: bool
    score: float
    weighings: list[list[float]]
    num_forward_passes: int


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
        run: Which of several runs of the row it is; None where there is one.
    """

    name: str
    pieces: list[str]
    start: list[int]
    editable: list[int]
    looks: list[Look]
    columns: int | None
    doubt_below: int
    settings: dict[str, str]
    run: Run | None = None

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
            for position, piece in look.copied:
                if piece >= 0:
                    first.setdefault(position, piece)
                    last[position] = piece
            for position, piece, *_ in look.filled + look.overwritten + look.padded:
                first.setdefault(position, piece)
                last[position] = piece
        return {
            "num_looks": sum(look.num_forwards > 0 for look in self.looks),
            "num_forward_passes": sum(look.num_forwards for look in self.looks),
            "num_generated": len(self.editable),
            "num_remasked": len(taken_back),
            "num_positions_remasked": len(set(taken_back)),
            "num_overwritten": sum(len(look.overwritten) for look in self.looks),
            "num_changed": sum(first[position] != last[position] for position in last),
        }

    def final_text(self) -> str:
        """The row's last state, as one text."""
        pieces, start = list(self.start), self.start
        for look in self.looks:
            for position, piece in look.copied:
                pieces[position] = piece if piece >= 0 else start[position]
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
    run: int | None = None,
) -> Generation:
    """Follow one row through the trace of a request.

    Args:
        output: Of a request with `return_trace=True`.
        row: Number of the row in the batch.
        sampler: Which gave it. Without a tokenizer of its model, tokens are shown by their numbers.
        attention_mask: As it was passed to the sampler, padded with ones over the new tokens; None without padding.
        columns: Positions in a line of a grid, >= 1; None for text.
        name: Shown where a page holds several.
        run: Which of the runs that a trajectory makes side by side; None: the one that was kept.

    Raises:
        ConfigurationError: If the output has no trace, there is no such run, or the row does not fill whole lines of `columns`.
    """
    if not output.trace:
        raise ConfigurationError(
            "a page needs the looks of the request, found no trace; pass `return_trace=True` to the sampler."
        )
    count, model = num_runs(sampler), sampler.model
    if run is None:
        run = 0 if count == 1 else int(_particles(output).kept[row])
    if not 0 <= run < count:
        raise ConfigurationError(f"`run` must be one of the {count} runs of a row, counted from 0, found {run}.")
    own = slice(None) if attention_mask is None else attention_mask[row].cpu().bool()
    start = output.trace[0].tokens_before[row * count + run][own]
    require_lines(len(start), columns)
    records = [record for record in output.trace if record.looked[row * count : (row + 1) * count].any()]
    end = (output.sequences[row] if count == 1 else _particles(output).sequences[row, run]).cpu()[own]
    followed = _Followed(records, row * count + run, own, start, end, model.mask_token_id)
    texts = token_pieces(model.tokenizer, followed.tokens)
    number = {token: index for index, token in enumerate(texts)}
    return Generation(
        name=name,
        pieces=list(texts.values()),
        start=[number[token] for token in start.tolist()],
        editable=followed.editable.tolist(),
        looks=followed.looks(number),
        columns=columns,
        doubt_below=round(doubt_below(sampler) * 1000),
        # as Python writes them: a rule without a name, such as a lambda, can be shown though it cannot be saved
        settings={one.name: repr(getattr(sampler, one.name)) for one in fields(SamplerSettings)},
        run=None if count == 1 else _run(output, row, run, count, [record.step for record in records]),
    )


def trace_runs(output: SamplerOutput, row: int, sampler: RemaskingSampler, **how: Any) -> list[Generation]:
    """Follow all runs of a row that a trajectory makes side by side, which a page shows beside each other; else the row.

    Args:
        output: As for `trace_generation`.
        row: As for `trace_generation`.
        sampler: As for `trace_generation`.
        **how: `attention_mask`, `columns` and `name` of `trace_generation`.

    Raises:
        ConfigurationError: As `trace_generation`.
    """
    return [trace_generation(output, row, sampler, run=run, **how) for run in range(num_runs(sampler))]


def num_runs(settings: SamplerSettings) -> int:
    """How many runs of a row a trace follows side by side."""
    return 1 if settings.trajectory is None else settings.trajectory.num_particles


def _particles(output: SamplerOutput) -> ParticleOutput:
    if output.particles is None:
        raise ConfigurationError(
            "the sampler makes several runs of a row, but the output has none; pass the sampler that gave it."
        )
    return output.particles


def _run(output: SamplerOutput, row: int, run: int, count: int, steps: list[int]) -> Run:
    """What is known of a run among those of its row; `steps` are the numbers of the row's looks in the batch."""
    particles = _particles(output)
    weighings = [
        [sum(step < one.look for step in steps), float(one.log_weights[row].softmax(-1)[run]), int(one.ancestors[row, run])]
        for one in particles.weighings
        if one.among[row]
    ]
    return Run(
        number=run,
        of=count,
        kept=int(particles.kept[row]) == run,
        score=float(particles.scores[row, run]),
        weighings=weighings,
        num_forward_passes=int(output.num_forward_passes[row]),
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


@dataclass(frozen=True)
class _Followed:
    """A row of the records, or a run of one, as it goes.

    Attributes:
        records: Looks at which it, or another run of its row, took part.
        place: Its place in the records.
        own: Its own positions.
        start: What stands there before the first look.
        end: What stands there in the end.
        mask_token_id: Of the model.
    """

    records: list[StepRecord]
    place: int
    own: Any
    start: Tensor
    end: Tensor
    mask_token_id: int

    @property
    def editable(self) -> Tensor:
        """Positions that are generated."""
        return (self.start == self.mask_token_id).nonzero().squeeze(-1)

    @property
    def tokens(self) -> list[int]:
        """All that ever stand there."""
        both = [part[self.place][self.own] for one in self.records for part in (one.tokens_before, one.tokens_after)]
        return torch.stack([self.start, self.end, *both]).unique().tolist()

    def looks(self, number: dict[int, int]) -> list[Look]:
        """What each look did, and one more where something else stands in the end; `number` is of the pieces, by token."""
        looks, stood = [], self.start
        for record in self.records:
            looks.append(self._look(record, self._copied(stood, record.tokens_before[self.place][self.own], number), number))
            stood = record.tokens_after[self.place][self.own]
        if not torch.equal(stood, self.end):  # an earlier round was better, or the reference is laid back
            looks.append(Look([], [], [], [], None, [], 0, self._copied(stood, self.end, number)))
        return looks

    def _copied(self, stood: Tensor, stands: Tensor, number: dict[int, int]) -> list[list[int]]:
        tokens = stands.tolist()
        return [[at, -1 if tokens[at] == self.mask_token_id else number[tokens[at]]] for at in _where(stood != stands)]

    def _look(self, record: StepRecord, copied: list[list[int]], number: dict[int, int]) -> Look:
        row, own, editable = self.place, self.own, self.editable
        before, after = record.tokens_before[row][own], record.tokens_after[row][own]
        unmasked, remasked = record.unmasked[row][own], record.remasked[row][own]
        confidence = record.confidence[row][own]
        padded = (before != after) & ~unmasked & ~remasked
        was_mask = torch.isin(torch.arange(len(before)), editable) & (before == self.mask_token_id)
        overwritten = unmasked & ~was_mask & (before != after)
        scores = {name: score[row][own] for name, score in record.scores.items()}
        return Look(
            filled=[[at, number[int(after[at])], _per_mille(confidence[at])] for at in _where(unmasked & was_mask)],
            overwritten=[
                [at, number[int(after[at])], number[int(before[at])], _per_mille(confidence[at])] for at in _where(overwritten)
            ],
            why=[[at, _in_words(scores, at)] for at in _where(remasked | overwritten)] if scores else [],
            num_forwards=int(record.num_forwards[row]),
            copied=copied,
            taken_back=_where(remasked),
            padded=[[at, number[int(after[at])]] for at in _where(padded)],
            quality=None if record.quality is None else [_per_mille(value) for value in record.quality[row][own][editable]],
        )


def _where(marked: Tensor) -> list[int]:
    return marked.nonzero().squeeze(-1).tolist()


def _per_mille(probability: Tensor) -> int:
    return -1 if probability.isnan() else round(float(probability) * 1000)
