"""Contestants in processes of their own, asked in turn: a noisy minute falls on all, and peak memory is each one's own."""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Machine:
    """Where a contestant runs. `dtype` is that of the backbone's weights."""

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


@dataclass(frozen=True)
class Result:
    """What was measured of one contestant.

    Attributes:
        seconds: Of each round, by the wall clock.
        cpu_seconds: Of each round, by the process's own clock: what a busy machine changes least. Not for accelerators.
        before: Bytes in use before the first round: interpreter, libraries and weights (on an accelerator, the weights).
        peak: Most bytes in use at any time in a round.
    """

    name: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    before: float
    peak: float

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Seconds of the middle round by the process's own clock."""
        return statistics.median(self.cpu_seconds)

    @property
    def above(self) -> float:
        """Bytes that the work itself needs at its peak."""
        return self.peak - self.before


Prepare = Callable[[Any, Machine], Callable[[], object]]


def compete(contestants: dict[str, Prepare], cases: Sequence[Any], machine: Machine, rounds: int) -> list[dict[str, Result]]:
    """Let every contestant do its work once to warm up and `rounds` times for the record, one after the other in turn.

    Args:
        contestants: By name: an importable function of (case, machine) that gives what is to be timed.
        cases: What all work on, one case after the other; they travel to the processes.
        machine: Where they run.
        rounds: Measured rounds, >= 1.

    Returns:
        The results of each case, by contestant.

    Raises:
        RuntimeError: If a contestant fails; what went wrong is on its standard error.
    """
    context = multiprocessing.get_context("spawn")
    lines, processes = {}, []
    measured = [{name: [] for name in contestants} for _ in cases]
    try:
        for name, prepare in contestants.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, prepare, cases, machine), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            lines[name] = here
            _receive(name, here)  # built one at a time, so that building does not compete either
        for number in range(len(cases)):
            for _ in range(rounds + 1):
                for name, line in lines.items():
                    line.send(number)
                    measured[number][name].append(_receive(name, line))
    finally:
        for line in lines.values():
            with suppress(OSError):  # one that failed does not listen
                line.send(None)
        for process in processes:
            process.join(timeout=10)
            process.terminate()
    return [{name: _result(name, found) for name, found in case.items()} for case in measured]


def _receive(name: str, line: Connection) -> dict[str, float]:
    try:
        return line.recv()
    except EOFError:
        raise RuntimeError(f"the contestant {name!r} failed; see its message above.") from None


def _result(name: str, measured: Sequence[dict[str, float]]) -> Result:
    counted = measured[1:]  # the first round was to warm up; its memory counts
    return Result(
        name=name,
        seconds=tuple(one["seconds"] for one in counted),
        cpu_seconds=tuple(one["cpu_seconds"] for one in counted),
        before=measured[0]["before"],
        peak=max(one["peak"] for one in measured),
    )


def _serve(line: Connection, prepare: Prepare, cases: Sequence[Any], machine: Machine) -> None:
    torch.set_num_threads(machine.threads)
    memory = _Memory(machine.device)
    works = [prepare(case, machine) for case in cases]
    gc.collect()
    line.send({})
    while (number := line.recv()) is not None:
        before = memory.start()
        began, began_cpu = time.perf_counter(), time.process_time()
        works[number]()
        memory.wait()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        line.send({"seconds": seconds, "cpu_seconds": cpu_seconds, "before": before, "peak": memory.peak()})
        gc.collect()


class _Memory:
    """Bytes in use now and at most: the process's own on the CPU, the allocator's on an accelerator."""

    def __init__(self, device: str) -> None:
        self.accelerator = None if device == "cpu" else torch.device(device)

    def start(self) -> float:
        """Forget the peak so far; what is in use now."""
        if self.accelerator is not None:
            torch.accelerator.reset_peak_memory_stats()
            return torch.accelerator.memory_allocated()
        with suppress(OSError, AttributeError):  # give freed pages back, where the C library is glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        _RESET.write_text("5", encoding="ascii")  # Linux: the high-water mark starts again from here
        return self._read("VmRSS")

    def wait(self) -> None:
        """Let the accelerator finish."""
        if self.accelerator is not None:
            torch.accelerator.synchronize()

    def peak(self) -> float:
        """The most that was in use since `start`."""
        return self._read("VmHWM") if self.accelerator is None else torch.accelerator.max_memory_allocated()

    @staticmethod
    def _read(key: str) -> float:
        (line,) = (line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{key}:"))
        return 1024.0 * int(line.split()[1])
