"""Contestants in processes of their own, asked in turn: a noisy minute falls on all, and peak memory is each one's own."""

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

MB = 1e6
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
        seconds: Of each round.
        before: Bytes in use before the first round: interpreter, libraries and weights (on an accelerator, the weights).
        peak: Most bytes in use at any time in a round.
    """

    name: str
    seconds: tuple[float, ...]
    before: float
    peak: float

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    @property
    def above(self) -> float:
        """Bytes that the work itself needs at its peak."""
        return self.peak - self.before


Prepare = Callable[[Any, Machine], Callable[[], object]]


def compete(contestants: dict[str, Prepare], case: Any, machine: Machine, rounds: int) -> dict[str, Result]:
    """Let every contestant do its work once to warm up and `rounds` times for the record, one after the other in turn.

    Args:
        contestants: By name: an importable function of (case, machine) that gives what is to be timed.
        case: What all work on; it travels to the processes.
        machine: Where they run.
        rounds: Measured rounds, >= 1.

    Raises:
        RuntimeError: If a contestant fails; what went wrong is on its standard error.
    """
    context = multiprocessing.get_context("spawn")
    lines, processes = {}, []
    try:
        for name, prepare in contestants.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, prepare, case, machine), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            lines[name] = here
            _receive(name, here)  # built one at a time, so that building does not compete either
        measured = {name: [] for name in contestants}
        for number in range(rounds + 1):
            for name, line in lines.items():
                line.send(True)
                found = _receive(name, line)
                measured[name].append(found if number else found | {"seconds": None})
        for line in lines.values():
            line.send(False)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.terminate()
    return {name: _result(name, found) for name, found in measured.items()}


def _receive(name: str, line: Connection) -> dict[str, float]:
    try:
        return line.recv()
    except EOFError:
        raise RuntimeError(f"the contestant {name!r} failed; see its message above.") from None


def _result(name: str, measured: Sequence[dict[str, Any]]) -> Result:
    return Result(
        name=name,
        seconds=tuple(one["seconds"] for one in measured if one["seconds"] is not None),
        before=measured[0]["before"],
        peak=max(one["peak"] for one in measured),
    )


def _serve(line: Connection, prepare: Prepare, case: Any, machine: Machine) -> None:
    torch.set_num_threads(machine.threads)
    memory = _Memory(machine.device)
    work = prepare(case, machine)
    gc.collect()
    line.send({})
    while line.recv():
        before = memory.start()
        began = time.perf_counter()
        work()
        memory.wait()
        line.send({"seconds": time.perf_counter() - began, "before": before, "peak": memory.peak()})
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


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that both benchmarks share."""
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds after one to warm up (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to run, such as cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of the backbone, such as bfloat16 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")


def machine_from(args: argparse.Namespace) -> Machine:
    """Read the flags of `add_machine_arguments`.

    Raises:
        SystemExit: If the machine cannot be used.
    """
    if args.rounds < 1 or args.threads < 1:
        sys.exit(f"`--rounds` and `--threads` must be at least 1, got {args.rounds} and {args.threads}.")
    if not isinstance(getattr(torch, args.dtype, None), torch.dtype):
        sys.exit(f"`--dtype` must be a dtype of torch such as float32, got {args.dtype!r}.")
    if args.device == "cpu" and not _RESET.exists():
        sys.exit("peak memory on the CPU is read from /proc, which is not here; run on Linux, or give another `--device`.")
    return Machine(device=args.device, dtype=args.dtype, threads=args.threads)


def result_table(title: str, results: dict[str, Result], *, floor: str, reference: str) -> Table:
    """Seconds, ratios and memory of each contestant, as Markdown that can be pasted."""
    table = Table(title=title, box=box.MARKDOWN, title_justify="left")
    table.add_column("contestant")
    for heading in ("seconds", f"of {floor}", f"{reference} takes", "peak MB", "above MB"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.median:.3f}",
            f"{result.median / results[floor].median:.2f} x",
            f"{results[reference].median / result.median:.1f} x",
            f"{result.peak / MB:.0f}",
            f"{result.above / MB:.0f}",
        )
    return table


def result_dict(results: dict[str, Result]) -> dict[str, Any]:
    """The same for machines: all rounds, and their medians."""
    return {name: asdict(result) | {"median": result.median, "above": result.above} for name, result in results.items()}
