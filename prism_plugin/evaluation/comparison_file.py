"""The file of a comparison: tasks and their adapters, presets and the settings that are tried of each, budgets, seeds.

All that can be said of it without data or a model is checked when it is read.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from prism_plugin.backbones import looks_like_path
from prism_plugin.core.validation import require_ints, require_seed
from prism_plugin.errors import ConfigurationError, UnknownNameError, did_you_mean
from prism_plugin.evaluation.fingerprints import file_fingerprint
from prism_plugin.evaluation.tasks import TASKS, Task
from prism_plugin.parsing_yaml import read_yaml
from prism_plugin.reader import from_mapping, naming
from prism_plugin.sampling import SamplerSettings, get_preset
from prism_plugin.sampling.presets import preset_settings

Trial = Mapping[str, Any]
"""Settings of a preset that are tried."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # what folders and columns can be called


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """A task of the comparison.

    Attributes:
        task: Name of the task, and its settings.
        validation: File of the rows that each preset's settings are chosen on.
        test: File of the rows that are reported.
        adapters: Folders, or ids on the Hub, by the names that the tables give them.
        backbones: Folders, or ids on the Hub, of the backbones that are no longer where their adapters say, by adapter.
        budgets: Numbers of steps that every preset is run with.
        more_steps: Further numbers of steps, by preset: for one that stops early, and so may spend more on a hard row.
    """

    task: dict[str, Any]
    validation: str
    test: str
    adapters: dict[str, str]
    budgets: tuple[int, ...]
    more_steps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    backbones: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_names(self.adapters, "adapters")
        for name in self.backbones:
            if name not in self.adapters:
                near = did_you_mean(name, self.adapters)
                raise ConfigurationError(
                    f"`backbones` must name `adapters` of this task, found {name!r}{near}; write it as there."
                )
        require_ints(self, "budgets", minimum=1)
        _require_once(self.budgets, "budgets")
        for preset, steps in self.more_steps.items():
            if not steps or min(steps) < 1:
                raise ConfigurationError(f"`more_steps` of {preset} must be integers of at least 1, found {list(steps)}.")
            _require_once((*self.budgets, *steps), f"budgets` and `more_steps` of `{preset}")

    def steps_of(self, preset: str) -> tuple[int, ...]:
        """Numbers of steps that a preset is run with, in order."""
        return tuple(sorted((*self.budgets, *self.more_steps.get(preset, ()))))


@dataclass(frozen=True, kw_only=True)
class _File:
    """What the file holds.

    Attributes:
        tasks: By the names that the tables give them.
        presets: The settings that are tried of each; as many for each. One that is compared several times has a word of its own
            behind a colon each time, such as `best_of:quality`.
        seeds: Of the test rows' draws, for a sampler that draws; settings are chosen with the first.
        differences: Pairs of presets whose difference is shown, the first less the second.
    """

    tasks: dict[str, TaskSection]
    presets: dict[str, tuple[dict[str, Any], ...]]
    seeds: tuple[int, ...] = (0,)
    differences: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _require_names(self.tasks, "tasks")
        self._check_presets()
        require_ints(self, "seeds", minimum=0)
        _require_once(self.seeds, "seeds")
        for seed in self.seeds:
            require_seed(seed, "seeds")
        named = [(f"`differences` {list(pair)}", name) for pair in self.differences for name in pair]
        named += [(f"`more_steps` of {task}", name) for task, one in self.tasks.items() for name in one.more_steps]
        for where, name in named:
            if name not in self.presets:
                near = did_you_mean(name, self.presets)
                raise ConfigurationError(f"{where} must name presets of this file, found {name!r}{near}; add it to `presets`.")
        for one, other in self.differences:
            if one == other:
                raise ConfigurationError(f"`differences` must be of two presets, found {one!r} twice; leave the pair out.")
        _require_once(self.differences, "differences")

    def _check_presets(self) -> None:
        if not self.presets:
            raise ConfigurationError("`presets` must name at least one preset with its trials, found none; add one.")
        for preset, trials in self.presets.items():
            get_preset(_preset_of(preset))
            _require_once(trials, f"presets`, `{preset}")
        counts = {preset: len(trials) for preset, trials in self.presets.items()}
        if len(set(counts.values())) > 1 or not min(counts.values()):
            told = ", ".join(f"{preset} {count}" for preset, count in counts.items())
            raise ConfigurationError(
                f"every preset must have as many trials as the others, at least one, or the best of more would win by chance; "
                f"found {told}; add trials, or leave some out."
            )


@dataclass(frozen=True)
class ComparedTask:
    """A task as it is compared: its section, read.

    Attributes:
        name: What the file calls it.
        task: The task.
        validation: File of the validation rows.
        test: File of the test rows.
        adapters: Where each lies, by name.
        backbones: Where the backbones of some of them lie, by the adapter's name.
        section: What the file says.
    """

    name: str
    task: Task
    validation: Path
    test: Path
    adapters: Mapping[str, str | Path]
    backbones: Mapping[str, str | Path]
    section: TaskSection


@dataclass(frozen=True)
class Comparison:
    """What is compared, checked as far as that can be done without data and models.

    Attributes:
        path: The file.
        tasks: The tasks.
        presets: The settings that are tried of each.
        asked: Presets that are run. Of the others those are told whose runs are there.
        seeds: Of the test rows' draws.
        differences: Pairs of presets whose difference is shown.
    """

    path: Path
    tasks: tuple[ComparedTask, ...]
    presets: Mapping[str, tuple[Trial, ...]]
    asked: tuple[str, ...]
    seeds: tuple[int, ...]
    differences: tuple[tuple[str, str], ...]

    def trials(self, task: ComparedTask, presets: Collection[str]) -> Iterator[tuple[str, int, Trial]]:
        """Preset, number of steps and settings of every trial of a task with some presets, in the order of the file."""
        for preset, trials in self.presets.items():
            if preset not in presets:
                continue
            for num_steps in task.section.steps_of(preset):
                for settings in trials:
                    yield preset, num_steps, settings

    def naming_trial(self, preset: str, num_steps: int, settings: Trial) -> Any:
        """Say which trial is refused within."""
        return naming(f"`presets`, `{preset}`, {dict(settings)}, {num_steps} steps")

    @property
    def reads(self) -> dict[str, str | Path]:
        """Files and folders that are read, by what errors call them."""
        found: dict[str, str | Path] = {"the file of the comparison": self.path}
        for task in self.tasks:
            found |= {f"the validation rows of {task.name}": task.validation, f"the test rows of {task.name}": task.test}
            found |= {f"the file `{name}` of {task.name}": file for name, file in files_of(task.task).items()}
            found |= {f"the adapter {name} of {task.name}": place for name, place in task.adapters.items()}
            found |= {f"the backbone of the adapter {name} of {task.name}": place for name, place in task.backbones.items()}
        return found


def read_comparison(path: Path, presets: Sequence[str] | None = None) -> Comparison:
    """Read a comparison, and check it.

    Args:
        path: YAML file. Paths in it are relative to its folder.
        presets: Which of its presets are run; None: all.

    Raises:
        ConfigurationError: If the file cannot be read, a value is of another type or out of range, or what it names is not
            there.
        UnknownKeyError: If there is a key that nothing reads, in the file, a task's settings or a preset's.
        UnknownNameError: If there is no such task or preset.
    """
    file = from_mapping(_File, read_yaml(path, "The comparison"), source=str(path))
    asked = _asked(path, file, presets)
    tasks = tuple(_task(path, name, section) for name, section in file.tasks.items())
    presets_here = {name: tuple(_beside(path, trial) for trial in trials) for name, trials in file.presets.items()}
    comparison = Comparison(path, tasks, presets_here, asked, file.seeds, file.differences)
    for task in tasks:
        _require_chosen(path, task, len(next(iter(file.presets.values()))))
        for preset, num_steps, settings in comparison.trials(task, presets_here):
            with naming(str(path)), comparison.naming_trial(preset, num_steps, settings):
                SamplerSettings(num_steps=num_steps, **settings_of(preset, settings))
    return comparison


def _asked(path: Path, file: _File, presets: Sequence[str] | None) -> tuple[str, ...]:
    for name in presets or ():
        if name not in file.presets:
            known = ", ".join(file.presets)
            raise UnknownNameError(f"{path} has no preset {name!r}{did_you_mean(name, file.presets)}; it has {known}.")
        if presets is not None and presets.count(name) > 1:
            raise ConfigurationError(f"`--presets` takes each preset once, found {name!r} twice; leave one of them out.")
    return tuple(name for name in file.presets if presets is None or name in presets)


def _task(path: Path, name: str, section: TaskSection) -> ComparedTask:
    source = f"{path}, `tasks`, `{name}`"
    task = TASKS.from_dict(section.task, source=f"{source}, `task`")
    own = {name: str(_file(source, path, name, value, "what the task reads")) for name, value in files_of(task).items()}
    task = replace(task, **own)  # type: ignore[type-var]  # a dataclass, as `register` checks
    files = {rows: _file(source, path, rows, getattr(section, rows), task.data_is) for rows in ("validation", "test")}
    if file_fingerprint(files["validation"]) == file_fingerprint(files["test"]):
        raise ConfigurationError(
            f"{source}: `validation` and `test` must be other rows, or settings would be chosen on those that are reported, "
            f"found the same in {section.validation} and {section.test}; name another file for one of them."
        )
    adapters, backbones = (
        {key: _place(f"{source}, `{which}`", path.parent, key, value, what) for key, value in getattr(section, which).items()}
        for which, what in (("adapters", "an adapter"), ("backbones", "a backbone"))
    )
    return ComparedTask(name, task, files["validation"], files["test"], adapters, backbones, section)


def _require_chosen(path: Path, task: ComparedTask, trials: int) -> None:
    first = next(iter(task.task.figures.values()))
    if trials > 1 and not first.chooses:
        raise ConfigurationError(
            f"{path}, `tasks`, `{task.name}`: no figure of this task may choose settings by itself, so every preset must have "
            f"one trial, found {trials}; leave the others out, or compare other tasks by a file of their own."
        )


def settings_of(preset: str, settings: Trial) -> dict[str, Any]:
    """Arguments of a sampler by a preset as a comparison names it, `best_of` or `best_of:quality`; see `preset_settings`."""
    return preset_settings(_preset_of(preset), settings)


def _beside(path: Path, settings: Trial) -> dict[str, Any]:
    """Settings whose files are found from the folder of the comparison."""
    policy = settings.get("policy")
    if isinstance(policy, str):
        policy = {"file": policy}
    if not isinstance(policy, Mapping) or not isinstance(policy.get("file"), str):
        return dict(settings)
    return {**settings, "policy": {**policy, "file": str(path.parent / Path(policy["file"]).expanduser())}}


def _preset_of(name: str) -> str:
    """The preset that is meant, without the word behind a colon that tells it from another line of the table."""
    preset, colon, word = name.partition(":")
    if colon and not _NAME.fullmatch(word):
        raise ConfigurationError(
            f"behind the colon of a preset comes a word of letters, digits, `.`, `_` and `-`, found {name!r}; choose another."
        )
    return preset


def files_of(task: Task) -> dict[str, str]:
    """The files that a task's settings name, by setting: those whose field has `file` in its metadata."""
    named = [one.name for one in fields(task) if one.metadata.get("file")]  # type: ignore[arg-type]  # as above
    return {name: getattr(task, name) for name in named if getattr(task, name) is not None}


def _file(source: str, path: Path, name: str, value: str, what: str) -> Path:
    file = path.parent / Path(value).expanduser()
    if not file.is_file():
        raise ConfigurationError(f"{source}: `{name}` must be a file of {what}, but there is none at {file}.")
    return file


def _place(source: str, folder: Path, name: str, value: str, what: str) -> str | Path:
    """The folder of an adapter or a backbone; what is not there and may be an id on the Hub is taken for one."""
    place = folder / Path(value).expanduser()
    if place.is_dir():
        return place
    if not value.strip() or looks_like_path(value) or Path(value).exists():
        raise ConfigurationError(
            f"{source}: `{name}` must be a folder with {what} or an id on the Hub, but there is no folder {place}."
        )
    return value


def _require_names(names: Collection[str], what: str) -> None:
    if not names:
        raise ConfigurationError(f"`{what}` must have at least one entry, found none; add one.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"names of `{what}` are letters, digits, `.`, `_` and `-`, found {name!r}; choose another."
            )


def _require_once(values: Sequence[Any], what: str) -> None:
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise ConfigurationError(f"`{what}` must hold each only once, found {twice!r} twice; leave one of them out.")
