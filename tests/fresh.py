"""Processes that begin with the libraries imported: tenths of a second each, where a new interpreter takes many seconds.

A server imports them once and forks; ours is imported by each process anew, and nothing of a test is there.
"""

import io
import multiprocessing
import os
import runpy
import sys
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ["torch", "transformers.trainer", "transformers.models.bert.modeling_bert", "peft", "accelerate", "datasets"]
PIN_MEMORY = "'pin_memory' argument is set as true but no accelerator is found"

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(LIBRARIES)


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_file(path, folder, *, arguments=(), environment=None, timeout=300):
    """Run a Python file in a folder, as `python FILE` does; a warning is an error."""
    return run_together(_run_file, [(str(path), str(folder), list(arguments))], environment, timeout)[0]


def run_together(function, arguments, environment=None, timeout=300):
    """Call a function of a module in several processes at the same time, each with its own arguments."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # what the server has, all have
    with tempfile.TemporaryDirectory() as told, ExitStack() as stack:
        places = [Path(told) / str(number) for number in range(len(arguments))]
        processes = [
            _CONTEXT.Process(target=_begin, args=(function, own, str(place), environment or {}))
            for own, place in zip(arguments, places, strict=True)
        ]
        for process in processes:
            process.start()
            stack.callback(process.kill)
        for process in processes:
            process.join(timeout)
        assert all(process.exitcode is not None for process in processes), "a process does not end"
        read = [[Path(f"{place}.{name}").read_text(encoding="utf-8") for name in ("out", "err")] for place in places]
        return [Done(process.exitcode, *texts) for process, texts in zip(processes, read, strict=True)]


def _begin(function, arguments, place, environment):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{place}.{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8") for number in (1, 2))
    os.environ.update(environment)
    function(*arguments)


def _run_file(path, folder, arguments):
    os.chdir(folder)
    warnings.resetwarnings()
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", PIN_MEMORY)  # torch's, of a Trainer default that a first page need not turn off
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")
