"""Record what a sampler's canvases hold on the way to an answer that is known: the states that a head can be trained on.

Rows go in order to the sources, each a sampler with a share of them, and within a source in batches. A batch is recorded by
itself, so that processes share them and a run that was cut off goes on; what comes out depends on neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import torch
from torch import Tensor

from prism_plugin.backbones import evaluation_mode
from prism_plugin.core.validation import require_int, require_number, require_seed
from prism_plugin.decoding import State
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.evaluation.compare import generators
from prism_plugin.evaluation.known_rows import masked_request, require_share
from prism_plugin.evaluation.tasks import Task
from prism_plugin.modeling import PrismModel
from prism_plugin.reader import naming
from prism_plugin.sampling import RemaskingSampler, SamplerSettings
from prism_plugin.sampling.batches import batches_of
from prism_plugin.sampling.canvas import LaidCanvas
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.training.checks import collator_of
from prism_plugin.types import TokenIds


@dataclass(frozen=True, kw_only=True)
class Source:
    """A sampler, its share of the rows, and how many states are kept of a run by how it ends.

    Attributes:
        preset: Name of a sampler preset.
        num_steps: Forward passes at most.
        settings: What differs from the preset's defaults.
        share: Of the rows, in (0, 1]; those of all sources make 1.
        of_right: States kept, chosen at random, of a run that ends with the right answer, >= 0.
        of_wrong: Of one that does not. More than of the others, since what a head has to tell apart is there.
        of_full: How many of these are taken from the looks that left nothing masked, before others are, >= 0: a sampler that
            takes back whole drafts decides there.
    """

    preset: str
    num_steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    of_right: int = 4
    of_wrong: int = 16
    of_full: int = 0

    def __post_init__(self) -> None:
        require_number(self, "share", "a number in (0, 1]", low=0, high=1, open_low=True)
        require_int(self, "of_full", minimum=0)
        if min(self.of_right, self.of_wrong) < 0 or self.of_right + self.of_wrong == 0:
            raise ConfigurationError(
                "`of_right` and `of_wrong` must be at least 0, and one of them more, got "
                f"{self.of_right} and {self.of_wrong} for {self.preset!r}."
            )

    def sampler_settings(self) -> SamplerSettings:
        """The sampler without a model.

        Raises:
            ConfigurationError: If the preset or a setting of it is wrong, or it makes several runs of a row.
        """
        settings = SamplerSettings(num_steps=self.num_steps, **preset_settings(self.preset, self.settings))
        if settings.trajectory is not None:
            raise ConfigurationError(
                f"states are recorded of one run of each row, but `trajectory` of {self.preset!r} is "
                f"{type(settings.trajectory).__name__}, which makes several; leave it out, or choose another preset."
            )
        return settings


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is recorded.

    Attributes:
        sources: The samplers.
        masked: Share of each row's maskable positions that they are to fill, in (0, 1]; the data stand in the others.
        held_out: Share of each source's rows, its last ones, whose states are written apart, in [0, 1).
        symmetries: Move each row by a random symmetry of its task before it is filled, and each state by another one, or a
            model that is trained on them learns the rows by heart.
        history: Write down beside each state what its tokens have been through.
        seed: Of all draws.
        batch_size: Rows at once, >= 1.
    """

    sources: tuple[Source, ...]
    masked: float = 1.0
    held_out: float = 0.0
    symmetries: bool = False
    history: bool = True
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        require_share(self.masked)
        require_seed(self.seed, "seed")
        if not 0 <= self.held_out < 1:
            raise ConfigurationError(f"`held_out` must be a share in [0, 1), got {self.held_out}.")
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        total = sum(one.share for one in self.sources)
        if abs(total - 1) > 1e-6:
            raise ConfigurationError(f"The shares of all `sources` must make 1, found {total:g}.")


@dataclass(frozen=True)
class Chunk:
    """Rows `begin` to `end` of a source, given by its number; the source has the rows `first` to `last`."""

    source: int
    begin: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class States:
    """States in the making: everything a list with an entry for each. What is per position is [length of the row].

    Attributes:
        number: Of the row.
        draft_ids: What the canvas held.
        age: Looks at the row since the token was written, 0 for one written at the last; -1 where the model wrote none.
        commit_confidence: Probability of the token when it was written, 1 where the model wrote none.
        times_remasked: How often the position has been taken back.
    """

    number: list[int] = field(default_factory=list)
    draft_ids: list[Tensor] = field(default_factory=list)
    age: list[Tensor] = field(default_factory=list)
    commit_confidence: list[Tensor] = field(default_factory=list)
    times_remasked: list[Tensor] = field(default_factory=list)


def split_into_chunks(recording: Recording, num_rows: int) -> list[Chunk]:
    """Give rows to the sources, and those of each source to batches.

    Raises:
        ConfigurationError: If a source gets no row, or none of its rows would be held out though a share is to be.
    """
    chunks, first = [], 0
    for number, source in enumerate(recording.sources):
        is_last = number == len(recording.sources) - 1
        last = num_rows if is_last else min(num_rows, first + round(source.share * num_rows))
        if last == first or (recording.held_out and (last - first) * recording.held_out < 1):
            raise ConfigurationError(
                f"Each source must get a row, and one that is held out if `held_out` is above 0, but {source.preset!r} gets "
                f"{last - first} of {num_rows} rows, of which a share of {recording.held_out} is held out; give more rows."
            )
        chunks += [
            Chunk(number, begin, min(begin + recording.batch_size, last), first, last)
            for begin in range(first, last, recording.batch_size)
        ]
        first = last
    return chunks


class Recorder:
    """Records the chunks of some rows. Everything that can be refused is refused when it is made.

    Args:
        model: Fills the rows.
        rows: Prepared rows, whose tokens are the answers.
        recording: What is recorded.
        task: Whose symmetries are meant, if any.

    Raises:
        UnknownNameError, UnknownKeyError, ConfigurationError: If a preset or a setting of it is wrong.
        DataFormatError: If a row leaves a sampler nothing to go by, or has recorded drafts.
        SamplingError: If a sampler cannot be asked to fill one.
    """

    def __init__(self, model: PrismModel, rows: datasets.Dataset, recording: Recording, task: Task | None = None) -> None:
        if "draft_ids" in rows.column_names:
            raise DataFormatError("The rows have recorded drafts (`draft_ids`) already; give the data that they were made of.")
        self.recording, self._model, self._task = recording, model, task
        self._samplers = []
        for number, source in enumerate(recording.sources):
            with naming(f"source {number + 1}"):
                self._samplers.append(RemaskingSampler(model, **vars(source.sampler_settings())))
        self.chunks = split_into_chunks(recording, len(rows))
        self._collate = collator_of(model)
        self._rows = self._moved(rows) if recording.symmetries else rows
        for chunk in self.chunks:
            for _, request, mask in self._requests(chunk):
                self._samplers[chunk.source].lay_infill(request, mask)

    def row(self, number: int) -> Mapping[str, Any]:
        """A row as it was filled."""
        return self._rows[number]

    def record(self, chunk: Chunk) -> tuple[States, int]:
        """Fill the rows of a chunk.

        Returns:
            The states that are kept, in the order of the rows, and how many of the rows were filled rightly.
        """
        kept, right = States(), 0
        source, sampler = self.recording.sources[chunk.source], self._samplers[chunk.source]
        for batch, request, mask in self._requests(chunk):
            numbers = batch["example_id"].tolist()
            chance = [generator for number in numbers for generator in generators(self.recording.seed, number, 1)]
            canvas = sampler.lay_infill(request, mask)
            looks = _Looks(canvas, self.recording.history)
            answers = looks.fill(sampler, chance)
            is_right = ((answers == batch["input_ids"]) | ~batch["maskable"]).all(-1).tolist()
            right += sum(is_right)
            lengths = batch["attention_mask"].sum(-1).tolist()
            for row, number in enumerate(numbers):
                wanted = source.of_right if is_right[row] else source.of_wrong
                order = torch.randperm(looks.count(row), generator=chance[row]).tolist()
                order = [look for look in order if not looks.is_empty(row, look)]
                full = [look for look in order if looks.is_full(row, look)][: source.of_full]
                chosen = (full + [look for look in order if look not in full])[:wanted]
                looks.keep(kept, number, row, chosen, lengths[row])
        return kept, right

    def _requests(self, chunk: Chunk) -> list[tuple[dict[str, Tensor], TokenIds, Tensor]]:
        """The rows of a chunk, as they go to the sampler: together, or apart by length where a family takes no padding."""
        rows = [{**self._rows[number], "example_id": number} for number in range(chunk.begin, chunk.end)]
        lengths, found = [len(row["input_ids"]) for row in rows], []
        for members in batches_of(self._model, range(len(rows)), lengths, len(rows)):
            group = [rows[number] for number in members]
            batch = {name: tensor.to(self._model.device) for name, tensor in self._collate(group).items()}
            request = masked_request(self._model, batch, self.recording.masked, self.recording.seed)
            found.append((batch, request, batch["attention_mask"]))
        return found

    def _moved(self, rows: datasets.Dataset) -> datasets.Dataset:
        symmetry = self._symmetry(len(rows))
        columns = rows.with_format("torch")
        return datasets.Dataset.from_dict(
            {
                "example_id": rows["example_id"],
                "input_ids": symmetry.move_tokens(columns["input_ids"][:].long()).tolist(),
                "maskable": symmetry.move_places(columns["maskable"][:]).tolist(),
            }
        )

    def _symmetry(self, count: int) -> Any:
        symmetry = None if self._task is None else self._task.symmetry(count, self.recording.seed)
        if symmetry is None:
            raise ConfigurationError("`symmetries` needs a task that has some, and this model's has none; leave it out.")
        return symmetry

    def finished(self, states: States) -> dict[str, list[Any]]:
        """The columns of recorded rows: the data, the states, and their history if it is kept."""
        rows = [self._rows[number] for number in states.number]
        columns: dict[str, list[Any]] = {
            "input_ids": [torch.tensor(row["input_ids"]) for row in rows],
            "maskable": [torch.tensor(row["maskable"]) for row in rows],
            "draft_ids": states.draft_ids,
        }
        if self.recording.history:
            columns |= {name: getattr(states, name) for name in ("age", "commit_confidence", "times_remasked")}
        if self.recording.symmetries:
            # every state by a symmetry of its own
            symmetry = self._symmetry(len(rows))
            for name, values in columns.items():
                move = symmetry.move_tokens if name.endswith("_ids") else symmetry.move_places
                columns[name] = list(move(torch.stack(values).long() if name.endswith("_ids") else torch.stack(values)))
        return columns

    def count_wrong(self, columns: Mapping[str, Sequence[Tensor]]) -> int:
        """How many recorded states hold a wrong token, beside those that are still masked."""
        mask = self._model.mask_token_id
        pairs = zip(columns["input_ids"], columns["draft_ids"], strict=True)
        return sum(bool(((draft != clean) & (draft != mask)).any()) for clean, draft in pairs)


class _Looks:
    """The looks at a batch while it is filled, in the layout of the request."""

    def __init__(self, canvas: LaidCanvas, history: bool) -> None:
        self._canvas, self._history = canvas, history
        self._took_part: list[Tensor] = []
        self._after: list[States] = []  # each with one entry, [batch, length]
        self._editable = canvas.editable.sum(-1).tolist()
        self._left: list[list[int]] = [[] for _ in self._editable]  # masks after each look that a row took part in

    def fill(self, sampler: RemaskingSampler, chance: Sequence[torch.Generator]) -> TokenIds:
        """Fill the canvas. Returns the answers."""
        canvas = self._canvas
        loop = sampler.loop(canvas, list(chance), watched=False)
        state = loop.begin(canvas)
        with evaluation_mode(sampler.model):
            while (step := loop.advance(state)) is not None:
                state = step.state
                self._took_part.append(torch.zeros_like(state.block, dtype=torch.bool).index_fill(0, step.rows, True).cpu())
                masked = canvas.editable & (state.tokens == sampler.model.mask_token_id)
                for row, left in zip(step.rows.tolist(), masked.sum(-1)[step.rows].tolist(), strict=True):
                    self._left[row].append(left)
                self._after.append(self._state(state))
        return canvas.restore(loop.finish(state).tokens, canvas.request)

    def _state(self, state: State) -> States:
        canvas, history = self._canvas, state.history
        one = States(draft_ids=[canvas.restore(state.tokens, canvas.request).int().cpu()])
        if not self._history:
            return one
        return replace(
            one,
            age=[canvas.restore(history.age, -1).short().cpu()],
            commit_confidence=[canvas.restore(history.commit_confidence, 1.0).float().cpu()],
            times_remasked=[canvas.restore(history.times_remasked, 0).short().cpu()],
        )

    def count(self, row: int) -> int:
        """Looks that a row took part in."""
        return int(sum(took[row] for took in self._took_part))

    def is_full(self, row: int, look: int) -> bool:
        """Whether one of a row's looks left nothing masked; counted among those that it took part in."""
        return self._left[row][look] == 0

    def is_empty(self, row: int, look: int) -> bool:
        """Whether one of a row's looks left nothing that could be judged, since all was taken back."""
        return self._left[row][look] == self._editable[row]

    def keep(self, kept: States, number: int, row: int, chosen: Sequence[int], length: int) -> None:
        """Add a row's states after some of its looks."""
        own = [after for after, took in zip(self._after, self._took_part, strict=True) if took[row]]
        for index in chosen:
            kept.number.append(number)
            for name in ("draft_ids", "age", "commit_confidence", "times_remasked"):
                values = getattr(own[index], name)
                if values:
                    getattr(kept, name).append(values[0][row, :length])
