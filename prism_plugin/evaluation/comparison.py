"""Compare presets over tasks, adapters, budgets and seeds: settings chosen on validation rows, figures from test rows.

All is checked before any row is filled; each run is kept when it is done, so that what was cut off goes on.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prism_plugin.evaluation.compare import answer_rows, row_batches
from prism_plugin.evaluation.comparison_file import ComparedTask, Comparison, Trial, files_of, settings_of
from prism_plugin.evaluation.comparison_log import About, Run, RunLog, TaskAbout, opened_log, require_folder
from prism_plugin.evaluation.comparison_results import CellResult, Results, Tuned, best_trial
from prism_plugin.evaluation.fingerprints import file_fingerprint, model_fingerprint
from prism_plugin.evaluation.tasks import TASKS
from prism_plugin.modeling import PrismModel
from prism_plugin.modeling.places import require_apart
from prism_plugin.reader import naming
from prism_plugin.sampling import RemaskingSampler, SamplerSettings
from prism_plugin.sampling.settings_files import stored_values

Load = Callable[[str | Path, str | Path | None], PrismModel]
"""Loads an adapter from a folder, or from the Hub by its id, with the backbone that lies where it says, or where it is told."""


class Progress(Protocol):
    """Is told how far a comparison is."""

    def plan(self, runs: int) -> None:
        """So many runs there are in all."""

    def begin(self, what: str, looks: int) -> None:
        """A run begins, of at most so many forwards of a batch."""

    def look(self) -> None:
        """A forward of a batch is done."""

    def end(self) -> None:
        """A run is there: made, or found in the log."""


@dataclass(frozen=True)
class _Rows:
    """Rows of a task, and what they are known by."""

    rows: Sequence[Any]
    fingerprint: str


@dataclass(frozen=True)
class _Cell:
    """A task with one of its adapters, looked at: what is asked of the task, its rows, and what the model is known by."""

    task: ComparedTask
    asked: dict[str, Any]
    adapter: str
    validation: _Rows
    test: _Rows
    fingerprint: str


@dataclass
class _Models:
    """Loads an adapter when it is needed; the last one stays."""

    load: Load
    places: tuple[str | Path, str | Path | None] | None = None
    model: PrismModel | None = None

    def get(self, task: ComparedTask, name: str) -> PrismModel:
        """An adapter of a task, as it was trained."""
        places = task.adapters[name], task.backbones.get(name)
        if self.model is None or self.places != places:
            self.model = None  # before the next one takes its memory
            self.places, self.model = places, self.load(*places)
        return self.model


def compare(
    comparison: Comparison, output: Path, *, load: Load, batch_size: int, progress: Progress, limit: int | None = None
) -> Results:
    """Run what is not in the folder's log yet, and gather the figures.

    Args:
        comparison: What is compared.
        output: Folder of the log.
        load: Loads an adapter.
        batch_size: Rows at once, >= 1; it changes nothing but rounding.
        progress: Is told how far it is.
        limit: Use only the first rows of each file.

    Raises:
        PrismError: If rows, an adapter, a trial or the folder cannot be used, before any row is filled.
    """
    require_folder(output)
    require_apart(output, comparison.reads, "`--output`")
    models = _Models(load)
    cells = list(_cells(comparison, models, limit, batch_size))
    about = About(limit, {task.name: _about(task, cells) for task in comparison.tasks})
    with opened_log(output, about) as log:
        work = _Work(comparison, log, models, batch_size, progress)
        return Results(limit, tuple(work.measure(cell) for cell in cells))


def _about(task: ComparedTask, cells: Sequence[_Cell]) -> TaskAbout:
    own = [cell for cell in cells if cell.task is task]
    adapters = {cell.adapter: cell.fingerprint for cell in own}
    return TaskAbout(own[0].asked, own[0].validation.fingerprint, own[0].test.fingerprint, adapters)


# ---- before any work ----


def _cells(comparison: Comparison, models: _Models, limit: int | None, batch_size: int) -> Iterator[_Cell]:
    """Read all rows and all adapters, and see that every trial can be run."""
    for task in comparison.tasks:
        validation, test = (_rows(task, path, limit) for path in (task.validation, task.test))
        # a file by what it holds, wherever it lies
        files = {name: file_fingerprint(Path(file)) for name, file in files_of(task.task).items()}
        asked = _plain({**TASKS.to_dict(task.task), **files})
        for name in task.adapters:
            with naming(f"{comparison.path}, `tasks`, `{task.name}`, adapter `{name}`"):
                task.task.require_model(models.get(task, name))
                _require_trials(comparison, task, models.get(task, name), [*validation.rows, *test.rows], batch_size)
            yield _Cell(task, asked, name, validation, test, model_fingerprint(models.get(task, name)))


def _rows(task: ComparedTask, path: Path, limit: int | None) -> _Rows:
    rows = task.task.rows(path, limit)
    return _Rows(rows, file_fingerprint(path, f"{len(rows)} rows"))


def _require_trials(
    comparison: Comparison, task: ComparedTask, model: PrismModel, rows: Sequence[Any], batch_size: int
) -> None:
    """Make every sampler, and lay out every row for it; what is the same for two samplers is laid out once."""
    batches = row_batches(task.task, model, rows, batch_size)
    canvases = [task.task.canvas([rows[number] for number in numbers], model) for numbers in batches]
    laid = set()
    for preset, num_steps, settings in comparison.trials(task, comparison.asked):
        with comparison.naming_trial(preset, num_steps, settings):
            sampler = RemaskingSampler(model, num_steps=num_steps, **settings_of(preset, settings))
            if (num_steps, sampler.block_length) not in laid:
                for input_ids, attention_mask in canvases:
                    sampler.lay_infill(input_ids.to(model.device), attention_mask)
                laid.add((num_steps, sampler.block_length))


# ---- the work ----


@dataclass
class _Work:
    """Makes the runs of a comparison, or takes them from the log."""

    comparison: Comparison
    log: RunLog
    models: _Models
    batch_size: int
    progress: Progress
    planned: int = field(init=False)

    def __post_init__(self) -> None:
        asked = self.comparison.asked
        self.planned = sum(self._most(task, asked) for task in self.comparison.tasks for _ in task.adapters)
        self.progress.plan(self.planned)

    def _most(self, task: ComparedTask, presets: Collection[str]) -> int:
        """Runs of some presets, as long as it is not known which of the tuned samplers draw."""
        return len(list(self.comparison.trials(task, presets))) + self._most_tests(task, presets)

    def _most_tests(self, task: ComparedTask, presets: Collection[str]) -> int:
        return len(self.comparison.seeds) * sum(len(task.section.steps_of(preset)) for preset in presets)

    def _plan(self, more: int) -> None:
        self.planned += more
        self.progress.plan(self.planned)

    def measure(self, cell: _Cell) -> CellResult:
        """Choose settings on the validation rows, and run those on the test rows.

        A preset that is not asked for is told too where all its runs are there: the folder's files are of all of them.
        """
        asked = self.comparison.asked
        told = [preset for preset in self.comparison.presets if preset in asked or self._is_made(cell, preset)]
        self._plan(self._most(cell.task, told) - self._most(cell.task, asked))
        tried: dict[tuple[str, int], list[Tuned]] = {}
        for preset, num_steps, settings in self.comparison.trials(cell.task, told):
            run = self._run(cell, "validation", preset, num_steps, settings, self.comparison.seeds[0])
            tried.setdefault((preset, num_steps), []).append(Tuned(preset, num_steps, settings, run))
        best = [best_trial(trials, cell.task.task) for trials in tried.values()]
        tests = [(tuned, self._seeds(tuned)) for tuned in best]
        self._plan(sum(len(seeds) for _, seeds in tests) - self._most_tests(cell.task, told))
        entries = []
        for tuned, seeds in tests:
            runs = [self._run(cell, "test", tuned.preset, tuned.num_steps, tuned.settings, seed) for seed in seeds]
            entries.append(tuned.tested(seeds, runs))
        counts = {"validation": len(cell.validation.rows), "test": len(cell.test.rows)}
        every = tuple(trial for trials in tried.values() for trial in trials)
        pairs = [pair for pair in self.comparison.differences if set(pair) <= set(told)]
        return CellResult(cell.task, cell.adapter, counts, pairs, every, tuple(entries))

    def _seeds(self, tuned: Tuned) -> tuple[int, ...]:
        """Those that a sampler fills the test rows with."""
        return self.comparison.seeds if tuned.sampler.draws else self.comparison.seeds[:1]

    def _is_made(self, cell: _Cell, preset: str) -> bool:
        """Whether all runs of a preset are in the log."""
        tried: dict[int, list[Tuned]] = {}
        for _, num_steps, settings in self.comparison.trials(cell.task, (preset,)):
            run = self.log.find(_asked(cell, "validation", preset, num_steps, settings, self.comparison.seeds[0]))
            if run is None:
                return False
            tried.setdefault(num_steps, []).append(Tuned(preset, num_steps, settings, run))
        best = [best_trial(trials, cell.task.task) for trials in tried.values()]
        return all(
            self.log.find(_asked(cell, "test", preset, tuned.num_steps, tuned.settings, seed)) is not None
            for tuned in best
            for seed in self._seeds(tuned)
        )

    def _run(self, cell: _Cell, split: str, preset: str, num_steps: int, settings: Trial, seed: int) -> Run:
        asked = _asked(cell, split, preset, num_steps, settings, seed)
        found = self.log.find(asked)
        if found is None:
            rows: _Rows = getattr(cell, split)
            what = f"{cell.task.name}, {cell.adapter}, {split}: {preset}, {num_steps} steps, seed {seed}"
            model = self.models.get(cell.task, cell.adapter)
            batches = row_batches(cell.task.task, model, rows.rows, self.batch_size)
            self.progress.begin(what, len(batches) * num_steps)
            model.merge_and_unload()  # the same to rounding, without the cost of LoRA's own products
            filler = RemaskingSampler(model, num_steps=num_steps, **settings_of(preset, settings))
            began = time.perf_counter()
            with _counted(model, self.progress.look):
                answers = answer_rows(cell.task.task, filler, rows.rows, seed, batch_size=self.batch_size)
            found = self.log.add(Run.of(asked, answers, time.perf_counter() - began))
        self.progress.end()
        return found


def _asked(cell: _Cell, split: str, preset: str, num_steps: int, settings: Trial, seed: int) -> dict[str, Any]:
    """What a run is known by."""
    rows: _Rows = getattr(cell, split)
    trial = trial_as_asked(preset, num_steps, settings)
    about = {"task": cell.asked, "adapter": cell.fingerprint, "rows": rows.fingerprint, "seed": seed}
    return _plain(about | trial)


def trial_as_asked(preset: str, num_steps: int, settings: Trial) -> dict[str, Any]:
    """What a trial is known by: a policy by what its file holds, wherever it lies."""
    sampler = stored_values(SamplerSettings(num_steps=num_steps, **settings_of(preset, settings)))
    if settings.get("policy") is not None:
        settings = {**settings, "policy": sampler["unmasking"]}
    return {"preset": preset, "settings": settings, "num_steps": num_steps, "sampler": sampler}


@contextmanager
def _counted(model: PrismModel, look: Callable[[], None]) -> Iterator[None]:
    """Tell each forward. A sampler that is watched would draw more tokens than it writes, and take longer."""
    handle = model.register_forward_hook(lambda *_: look())
    try:
        yield
    finally:
        handle.remove()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they are read again from JSON."""
    return json.loads(json.dumps(values, default=str))
