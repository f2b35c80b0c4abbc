"""What runs say: figures with standard errors, differences paired over rows, and the best within a number of forwards."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from prism_plugin.evaluation.comparison_file import ComparedTask, Trial, settings_of
from prism_plugin.evaluation.comparison_log import Run
from prism_plugin.evaluation.tasks import Figure, Task
from prism_plugin.evaluation.tasks.task import PerAnswer
from prism_plugin.sampling import SamplerSettings


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over rows; None where no row says anything, or rows do not say how far it is off."""

    value: float | None
    stderr: float | None


@dataclass(frozen=True)
class Measured:
    """Runs of one sampler on the same rows, each with another seed."""

    runs: tuple[Run, ...]

    def figure(self, name: str) -> Figure:
        """A figure by row, the mean over seeds."""
        figures = [run.figure(name) for run in self.runs]
        total, count = (torch.stack([getattr(one, part) for one in figures]).mean(0) for part in ("total", "count"))
        return Figure(total, count)

    def has_error(self, name: str) -> bool:
        """Whether rows are independent in a figure, so that they say how far it is off."""
        return all(run.figures[name].has_error for run in self.runs)

    def estimate(self, name: str) -> Estimate:
        """A figure and its standard error over rows."""
        figure = self.figure(name)
        return Estimate(figure.value, figure.stderr if self.has_error(name) else None)

    def less(self, other: "Measured", name: str) -> Estimate:
        """A figure less that of another sampler on the same rows: what is hard for both does not count as noise."""
        one, two = self.figure(name), other.figure(name)
        if one.value is None or two.value is None:
            return Estimate(None, None)
        off = _off(one, one.value) - _off(two, two.value)
        known = self.has_error(name) and other.has_error(name)
        return Estimate(one.value - two.value, off.square().sum().sqrt().item() if known else None)

    @cached_property
    def forwards(self) -> float:
        """Mean forward passes of a row."""
        return _mean([run.forwards for run in self.runs])

    @cached_property
    def positions(self) -> float:
        """Mean positions computed for a row."""
        return _mean([run.positions for run in self.runs])

    @property
    def seconds(self) -> float:
        """Mean wall-clock time of a run over all rows."""
        return sum(run.seconds for run in self.runs) / len(self.runs)


def _off(figure: Figure, value: float) -> PerAnswer:
    """By how much each row draws a figure away from its value."""
    return (figure.total - value * figure.count) / figure.count.sum()


def _mean(by_run: Sequence[Sequence[float]]) -> float:
    return torch.tensor(by_run, dtype=torch.float64).mean().item()


@dataclass(frozen=True)
class Tuned:
    """A trial: settings of a preset with a number of steps, and what they did on the validation rows."""

    preset: str
    num_steps: int
    settings: Trial
    run: Run

    @cached_property
    def sampler(self) -> SamplerSettings:
        """The sampler, without a model."""
        return SamplerSettings(num_steps=self.num_steps, **settings_of(self.preset, self.settings))

    @property
    def validation(self) -> Measured:
        """What was measured on the validation rows."""
        return Measured((self.run,))

    def tested(self, seeds: Sequence[int], runs: Sequence[Run]) -> "Entry":
        """This trial, with what it did on the test rows."""
        return Entry(self.preset, self.num_steps, self.settings, self.run, tuple(seeds), Measured(tuple(runs)))


@dataclass(frozen=True)
class Entry(Tuned):
    """A line of the table: the best trial of a preset with a number of steps, and what it did on the test rows."""

    seeds: tuple[int, ...]
    test: Measured

    @property
    def reads_head(self) -> bool:
        """Whether the sampler reads the quality head, by what its rules need."""
        return self.sampler.reads_head


_Own = tuple[str, Entry]  # an adapter, and what it did


def best_trial(trials: Sequence[Tuned], task: Task) -> Tuned:
    """The trial with the highest first figure; of equals, the first."""
    first = next(iter(task.figures))
    return max(trials, key=lambda trial: _or_lowest(trial.validation.estimate(first).value))


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value


@dataclass(frozen=True)
class Difference:
    """What one preset has more than another with the same number of steps, by figure."""

    preset: str
    minus: str
    num_steps: int
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class BestWithin:
    """The best that reads the head and the best that does not, chosen on validation rows, within a mean number of forwards."""

    budget: int
    with_head: Entry
    without: Entry
    difference: Estimate


@dataclass(frozen=True)
class BestAcross:
    """The same over all adapters of a task, so that both choose from the same weights.

    Attributes:
        budget: Mean forwards at most.
        with_head: The best that reads the head.
        without: The best that does not.
        adapters: The adapter of either.
        difference: Of the two.
        reaching: Of those that read the head and reach what `without` does, on validation rows, the one with the fewest
            forwards, and its adapter; None where none does.
    """

    budget: int
    with_head: Entry
    without: Entry
    adapters: tuple[str, str]
    difference: Estimate
    reaching: tuple[str, Entry] | None

    @property
    def fewer_forwards(self) -> float | None:
        """Share of the forwards of `without` that `reaching` saves, on test rows; below 0 where it needs more."""
        return None if self.reaching is None else 1 - self.reaching[1].test.forwards / self.without.test.forwards


@dataclass(frozen=True)
class CellResult:
    """A task with an adapter.

    Attributes:
        task: The task, with its name.
        adapter: Name of the adapter.
        rows: How many validation and test rows there are.
        pairs: Presets whose difference is shown.
        trials: All that was tried, in order.
        entries: The best of them on test rows, in the order of the file.
    """

    task: ComparedTask
    adapter: str
    rows: Mapping[str, int]
    pairs: Sequence[tuple[str, str]]
    trials: tuple[Tuned, ...]
    entries: tuple[Entry, ...]

    @property
    def first(self) -> str:
        """Name of the figure that counts."""
        return next(iter(self.task.task.figures))

    @property
    def chooses(self) -> bool:
        """Whether presets may be chosen by the figure that counts."""
        return self.task.task.figures[self.first].chooses

    @property
    def counting(self) -> tuple[str, ...]:
        """Names of the figures that presets are compared by: the first, or all where they have to be read together."""
        return (self.first,) if self.chooses else tuple(self.task.task.figures)

    @cached_property
    def forwards_differ(self) -> bool:
        """Whether some sampler computes a fifth more positions in a forward than another, so that forwards alone mislead.

        Adaptive samplers spend their forwards on other rows, longer ones among them, which is less than that.
        """
        widths = [entry.test.positions / entry.test.forwards for entry in self.entries if entry.test.forwards]
        return bool(widths) and max(widths) > 1.2 * min(widths)

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """The differences that were asked for, with each number of steps that both were run with."""
        found = {(entry.preset, entry.num_steps): entry for entry in self.entries}
        return tuple(
            Difference(one, other, num_steps, self._difference(found[one, num_steps], found[other, num_steps]))
            for one, other in self.pairs
            for num_steps in self.task.section.steps_of(one)
            if (other, num_steps) in found
        )

    def _difference(self, one: Entry, other: Entry) -> dict[str, Estimate]:
        return {name: one.test.less(other.test, name) for name in self.task.task.figures}

    @cached_property
    def best(self) -> tuple[BestWithin, ...]:
        """For each budget that some sampler with the head and some without keep to in the mean over validation rows.

        None where no figure may choose.
        """
        found: list[BestWithin] = []
        if not self.chooses:
            return ()
        for budget in sorted(self.task.section.budgets):
            pair = _best_pair([(self.adapter, entry) for entry in self.entries], budget, self.first)
            if pair is not None:
                with_head, without = pair[0][1], pair[1][1]
                found.append(BestWithin(budget, with_head, without, with_head.test.less(without.test, self.first)))
        return tuple(found)

    @property
    def tuned_settings(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Preset -> number of steps -> settings, as `eval --settings` reads them."""
        settings: dict[str, dict[int, dict[str, Any]]] = {}
        for entry in self.entries:
            # a copy, or settings that two numbers of steps share would be written as a YAML alias
            settings.setdefault(entry.preset, {})[entry.num_steps] = copy.deepcopy(dict(entry.settings))
        return settings


def _best_pair(own: Sequence[_Own], budget: int, figure: str) -> tuple[_Own, _Own] | None:
    """The best that reads the head and the best that does not, within a mean number of forwards; None where one lacks."""
    within = [one for one in own if one[1].validation.forwards <= budget]
    groups = [[one for one in within if one[1].reads_head == reads] for reads in (True, False)]
    if not all(groups):
        return None
    with_head, without = (max(group, key=lambda one: _validated(one[1], figure)) for group in groups)
    return with_head, without


def _validated(entry: Entry, figure: str) -> float:
    return _or_lowest(entry.validation.estimate(figure).value)


@dataclass(frozen=True)
class Results:
    """All that was compared.

    Attributes:
        limit: Rows of each file that were used; None: all.
        cells: Tasks with adapters.
    """

    limit: int | None
    cells: tuple[CellResult, ...]

    @cached_property
    def across(self) -> dict[str, tuple[BestAcross, ...]]:
        """For each task that several adapters were compared on, the best over all of them within each budget."""
        found: dict[str, tuple[BestAcross, ...]] = {}
        for name in dict.fromkeys(cell.task.name for cell in self.cells):
            cells = [cell for cell in self.cells if cell.task.name == name]
            if len(cells) > 1 and cells[0].chooses:
                found[name] = tuple(_across(cells))
        return found


def _across(cells: Sequence[CellResult]) -> Iterator[BestAcross]:
    first = cells[0].first
    own: list[_Own] = [(cell.adapter, entry) for cell in cells for entry in cell.entries]
    for budget in sorted(cells[0].task.section.budgets):
        pair = _best_pair(own, budget, first)
        if pair is None:
            continue
        (one, with_head), (other, without) = pair
        able = [each for each in own if each[1].reads_head and _validated(each[1], first) >= _validated(without, first)]
        reaching = min(able, key=lambda each: each[1].validation.forwards, default=None)
        difference = with_head.test.less(without.test, first)
        yield BestAcross(budget, with_head, without, (one, other), difference, reaching)
