"""The folder of a comparison: whose it is, and the log of its runs, one JSON line each, added when it is done.

What was killed goes on where it stood: a run is found by what was asked, and a line that was cut off is made again.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from prism_plugin.errors import ConfigurationError, PrismError, SavingError, StoredStateError
from prism_plugin.evaluation.compare import Answers
from prism_plugin.evaluation.tasks import Figure
from prism_plugin.modeling.strict_files import read_json
from prism_plugin.parsing import parse_json
from prism_plugin.reader import differing, from_mapping, without_version
from prism_plugin.writing import remove_leftovers, require_place, write_text

ABOUT_FILE, LOG_FILE = "comparison.json", "runs.jsonl"
RESULT_FILES = ("results.json", "results.csv", "seconds.csv", "tables.md", "index.html")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TaskAbout:
    """What the runs of a task have in common: the task, and what its rows and its adapters are known by."""

    task: dict[str, Any]
    validation: str
    test: str
    adapters: dict[str, str]


@dataclass(frozen=True)
class About:
    """What all runs of a folder have in common.

    Attributes:
        limit: Rows of each file that were used; None: all.
        tasks: By name.
    """

    limit: int | None
    tasks: dict[str, TaskAbout]

    def joined(self, later: "About") -> "About":
        """This with the tasks and adapters of another, whose word counts where both name something."""
        tasks = dict(self.tasks)
        for name, own in later.tasks.items():
            before = self.tasks[name].adapters if name in self.tasks else {}
            tasks[name] = replace(own, adapters={**before, **own.adapters})
        return About(later.limit, tasks)


@dataclass(frozen=True)
class FigureByRow:
    """A figure as it is written down. Its lists hold thousands of numbers, which are not checked one by one.

    Attributes:
        total: What each row adds to the sum.
        count: What each row adds to the count.
        has_error: Whether rows are independent, so that they say how far it is off.
    """

    total: list
    count: list
    has_error: bool

    @classmethod
    def of(cls, figure: Figure) -> "FigureByRow":
        """Write a figure down."""
        return cls(_numbers(figure.total), _numbers(figure.count), figure.value is None or figure.stderr is not None)


@dataclass(frozen=True)
class Run:
    """A run that was made: a sampler's answers to rows, by row.

    Attributes:
        asked: What it depends on: task, adapter, rows, preset, settings, number of steps, sampler, seed.
        figures: The task's figures, by name.
        forwards: Forward passes of each row.
        positions: Positions that were computed for each row.
        seconds: Wall-clock time.
    """

    asked: dict[str, Any]
    figures: dict[str, FigureByRow]
    forwards: list
    positions: list
    seconds: float

    @classmethod
    def of(cls, asked: dict[str, Any], answers: Answers, seconds: float) -> "Run":
        """Write answers down."""
        figures = {name: FigureByRow.of(figure) for name, figure in answers.figures.items()}
        return cls(asked, figures, _numbers(answers.num_forward_passes), _numbers(answers.num_positions), seconds)

    def figure(self, name: str) -> Figure:
        """A figure, by row."""
        kept = self.figures[name]
        return Figure(_tensor(kept.total), _tensor(kept.count))

    def require_numbers(self) -> None:
        """See that all its lists are of numbers, one for each row, or raise what torch does, or ValueError."""
        figures = [self.figure(name) for name in self.figures]
        tensors = [_tensor(self.forwards), _tensor(self.positions)]
        tensors += [tensor for figure in figures for tensor in (figure.total, figure.count)]
        if any(tensor.shape != (len(self.forwards),) for tensor in tensors):
            raise ValueError("its lists must be of numbers, one for each row")


class RunLog:
    """The runs of a folder, by what was asked. It is locked, and goes with the file that it was opened with."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._runs: dict[str, Run] = {}
        content = file.read()
        whole, newline, _ = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
            run = self._read(line, number)
            self._runs.setdefault(_key(run.asked), run)
        file.truncate(len(whole) + len(newline))  # a line that was cut off is made again
        file.seek(0, os.SEEK_END)

    def find(self, asked: Mapping[str, Any]) -> Run | None:
        """The run of what is asked, if it was made."""
        return self._runs.get(_key(asked))

    def add(self, run: Run) -> Run:
        """Write a run down, and wait until it is on the disk. Returns it as it is read again.

        Raises:
            SavingError: If it cannot be written.
        """
        line = json.dumps(asdict(run), separators=(",", ":"))
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SavingError(
                f"{self._path} could not be written ({error}); make room, and start again: what is in it is not repeated."
            ) from error
        return self._runs.setdefault(_key(run.asked), self._read(line.encode(), len(self._runs) + 1))

    def _read(self, line: bytes, number: int) -> Run:
        try:
            run = from_mapping(Run, parse_json(line.decode()), source=str(self._path), whole=True)
            run.require_numbers()
            return run
        except (ValueError, TypeError, RuntimeError, OverflowError, PrismError) as error:  # what torch says of other things
            raise StoredStateError(
                f"{self._path}, line {number}: a line must be a run as `compare` wrote it, but it is not ({error}); take the "
                "line away, and its run is made again."
            ) from error


def require_folder(folder: Path) -> None:
    """Check, before any work, that a comparison can be written into a folder, and costs nobody else's files.

    Raises:
        SavingError: If it would, or the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise SavingError(f"`--output` must be a folder, but {folder} is a file; choose another name.")
    for name in (ABOUT_FILE, LOG_FILE, *RESULT_FILES):
        require_place(folder / name, "comparison")
    found = [name for name in (LOG_FILE, *RESULT_FILES) if (folder / name).exists()]
    if found and not (folder / ABOUT_FILE).exists():
        raise SavingError(
            f"`--output` {folder} holds {', '.join(found)} but no {ABOUT_FILE}, so another program wrote it, and it would be "
            "written over; choose another folder, or move these files away."
        )


@contextmanager
def opened_log(folder: Path, about: About) -> Iterator[RunLog]:
    """Have a folder for this comparison alone, and its log.

    Args:
        folder: The folder, made if it is not there.
        about: What the runs to come have in common. Those that are there may be of other tasks and adapters, which stay.

    Raises:
        ConfigurationError: If another process has it, or it is the folder of another comparison.
        StoredStateError: If what it holds is not what was written.
        SavingError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _joined(folder, about)  # before the log is there, so that a folder that is refused stays as it was
        file = (folder / LOG_FILE).open("a+b")
    except OSError as error:
        raise SavingError(f"`--output` {folder} cannot be written ({error}); choose another folder.") from error
    with file:
        _lock(file, folder)
        written = asdict(_joined(folder, about))
        remove_leftovers(folder, ABOUT_FILE, *RESULT_FILES)
        write_text(folder / ABOUT_FILE, json.dumps({"format_version": FORMAT_VERSION, **written}, indent=2) + "\n")
        file.seek(0)
        yield RunLog(file, folder / LOG_FILE)


def _lock(file: BinaryIO, folder: Path) -> None:
    """It ends with the process, however that ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"`--output` {folder} is in use by another process; wait for its end, or choose another folder."
        ) from None
    except OSError:  # a file system without locks
        pass


def _joined(folder: Path, about: About) -> About:
    """What a folder is about, with what is to come; refused where both name something and it is not the same."""
    path = folder / ABOUT_FILE
    if not path.exists():
        return about
    stored = without_version(read_json(path, "`prism-plugin compare`"), FORMAT_VERSION, source=str(path))
    try:
        before = from_mapping(About, stored, source=str(path), whole=True)
    except PrismError as error:
        raise StoredStateError(f"{path} must be as `compare` wrote it, but is not ({error}); choose another folder.") from error
    joined = before.joined(about)
    names = differing(asdict(joined), asdict(about.joined(before)))
    if names:
        raise ConfigurationError(
            f"`--output` {folder} belongs to another comparison, or what it reads has changed since, in {', '.join(names)}; "
            "choose another folder."
        )
    return joined


def _key(asked: Mapping[str, Any]) -> str:
    return json.dumps(asked, sort_keys=True)


def _tensor(numbers: list) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _numbers(values: torch.Tensor) -> list[int | float]:
    """Numbers as short as JSON can hold them exactly."""
    return [int(value) if value.is_integer() else value for value in values.double().tolist()]
