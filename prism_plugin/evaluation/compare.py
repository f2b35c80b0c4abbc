"""Compare sampler presets on a task, at equal forward passes: the same rows for each, and settings that were tuned for each."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.comparison_file import settings_of
from prism_plugin.evaluation.tasks import TASKS, Figure, Task
from prism_plugin.modeling import PrismModel
from prism_plugin.parsing_yaml import read_yaml
from prism_plugin.reader import fits, naming
from prism_plugin.sampling import RemaskingSampler, SamplerSettings
from prism_plugin.sampling.batches import batches_of, takes_padding
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.types import PerRow

BATCH_SIZE = 256

Settings = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Preset -> number of steps it was tuned for -> settings."""


@dataclass(frozen=True)
class Answers:
    """What a sampler made of rows: the task's figures, and each row's forward passes and the positions computed in them."""

    figures: dict[str, Figure]
    num_forward_passes: PerRow
    num_positions: PerRow


@dataclass(frozen=True)
class PresetResult:
    """One row of the table.

    Attributes:
        preset: Name of the sampler preset.
        answers: Figures and forward passes, by row of the task.
        seconds: Wall-clock time of the preset.
        settings: What the preset was run with, beyond its defaults.
    """

    preset: str
    answers: Answers
    seconds: float
    settings: dict[str, Any]

    @property
    def num_forward_passes(self) -> float:
        """Mean over rows."""
        return self.answers.num_forward_passes.double().mean().item()


def read_settings(path: Path) -> Settings:
    """Read tuned settings: YAML of preset -> num_steps -> settings.

    Raises:
        ConfigurationError: If the file does not have that form, or a setting is of another type or out of range.
        UnknownNameError: If a preset is unknown.
        UnknownKeyError: If a preset has no such setting.
    """
    stored = read_yaml(path, "The settings")
    if not fits(stored, Settings) or not all(stored.values()):
        raise ConfigurationError(f"{path} must map presets to numbers of steps to settings, found {str(stored)[:80]!r}.")
    for preset, by_steps in stored.items():
        for num_steps, settings in by_steps.items():
            with naming(f"{path}, {preset}, {num_steps}"):
                SamplerSettings(num_steps=num_steps, **settings_of(preset, settings))
    return stored


def settings_for(settings: Settings, preset: str, num_steps: int) -> dict[str, Any]:
    """Pick the settings tuned for the nearest number of steps, the smaller of two; none for a preset that was not tuned."""
    by_steps = settings.get(preset)
    if not by_steps:
        return {}
    return dict(by_steps[min(by_steps, key=lambda tuned: (abs(tuned - num_steps), tuned))])


def make_samplers(
    model: PrismModel, presets: Sequence[str], num_steps: int, settings: Settings
) -> dict[str, tuple[RemaskingSampler, dict[str, Any]]]:
    """Build the sampler of each preset, so that every mistake in a setting is found before any work."""
    chosen = {preset: settings_for(settings, preset, num_steps) for preset in presets}
    return {
        preset: (RemaskingSampler(model, num_steps=num_steps, **preset_settings(preset, own)), own)
        for preset, own in chosen.items()
    }


def answer_rows(
    task: Task, sampler: RemaskingSampler, rows: Sequence[Any], seed: int, *, batch_size: int = BATCH_SIZE, **request: Any
) -> Answers:
    """Fill and judge rows, `batch_size` at once. Row `i` depends on (`seed`, `i`) alone, not on the others or on the batch."""
    judged, passes, positions = [], [], []
    batches = row_batches(task, sampler.model, rows, batch_size)
    for numbers in batches:
        batch = [rows[number] for number in numbers]
        input_ids, attention_mask = task.canvas(batch, sampler.model)
        chance = [generator for number in numbers for generator in generators(seed, number, 1)]
        output = sampler.infill(input_ids.to(sampler.model.device), attention_mask, generator=chance, **request)
        judged.append(task.judge(batch, output.sequences.cpu(), sampler.model))
        passes.append(output.num_forward_passes.cpu())
        positions.append(output.num_positions.cpu())
    place = torch.tensor([number for numbers in batches for number in numbers]).argsort()  # of each row, in what was made
    figures = {name: Figure.joined([one[name] for one in judged]).of_rows_in(place.tolist()) for name in task.figures}
    return Answers(figures, torch.cat(passes)[place], torch.cat(positions)[place])


def row_batches(task: Task, model: PrismModel, rows: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Numbers of the rows that are filled together: equally long ones where the family takes no padding."""
    padded = takes_padding(model)
    lengths = [0 if padded else task.canvas([row], model)[0].shape[1] for row in rows]
    return batches_of(model, range(len(rows)), lengths, batch_size)


def generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """Make a generator for each of `count` rows from number `first` on; each depends on (`seed`, its number) alone."""
    return [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(first, first + count)]


def evaluate_presets(
    task: Task,
    model: PrismModel,
    rows: Sequence[Any],
    presets: Sequence[str],
    *,
    num_steps: int,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    settings: Settings | None = None,
    on_step: Callable[[str], None] | None = None,
) -> list[PresetResult]:
    """Let each preset fill the same rows, in turn.

    Args:
        task: What the rows are, and what counts as right.
        model: Backbone with a quality head.
        rows: Rows of the task.
        presets: Names of presets.
        num_steps: Forward passes that each may use, at most, per row.
        seed: Of the samplers' draws.
        batch_size: Rows at once, >= 1; it changes nothing but rounding.
        settings: Tuned settings; see `settings_for`.
        on_step: Called with the preset's name after each forward of a batch.

    Raises:
        UnknownNameError, UnknownKeyError, ConfigurationError: If a preset or a setting of it is wrong, before any work.
    """
    results = []
    for preset, (sampler, own) in make_samplers(model, presets, num_steps, settings or {}).items():
        began = time.perf_counter()
        notify = None if on_step is None else lambda _record, name=preset: on_step(name)
        answers = answer_rows(task, sampler, rows, seed, batch_size=batch_size, on_step=notify)
        results.append(PresetResult(preset, answers, seconds=time.perf_counter() - began, settings=own))
    return results


def to_json(task: Task, results: Sequence[PresetResult], *, rows: int, num_steps: int) -> dict[str, Any]:
    """Write results as the object that `eval --json` and `demo --json` print."""
    written = []
    for result in results:
        figures = {}
        for number, (name, figure) in enumerate(result.answers.figures.items()):
            figures[name] = figure.value
            if number == 0:
                figures[f"{name}_stderr"] = figure.stderr
        passes = {"num_forward_passes": result.num_forward_passes, "seconds": result.seconds, "settings": result.settings}
        written.append({"preset": result.preset, **figures, **passes})
    fields = TASKS.to_dict(task)
    asked = {"task": fields.pop("name"), **({"fields": fields} if fields else {})}
    return {**asked, task.rows_are: rows, "num_steps": num_steps, "rows": written}
