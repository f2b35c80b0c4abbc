"""Run what a model wrote, with its tests, in a process of its own that is bounded and does not outlive its time."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.tasks import code_confined
from prism_plugin.evaluation.tasks.code_confined import PARSES, PASSES, PROGRAM

MAX_FILE_BYTES = 2**20
# The process itself: it may start no other, and no thread.
MAX_PROCESSES = 1


@dataclass(frozen=True)
class Outcome:
    """How far a program came: its answer is Python, and the tests found nothing."""

    parses: bool = False
    passes: bool = False


def run_confined(answer: str, tests: str, *, seconds: float, memory_mb: int) -> Outcome:
    """Run an answer, and then its tests in the same module, within limits; see `code_confined.py`.

    The process is a fresh Python with the standard library alone (`-I -S`), no environment, a temporary folder to work in, no
    input, and outputs that lead nowhere. It is killed with its whole group at the end, whatever came of it.

    Args:
        answer: A program.
        tests: What runs after it.
        seconds: That both may take, by the clock and of the processor.
        memory_mb: Memory that they may ask for, in MiB.
    """
    limits = {"seconds": seconds, "memory": memory_mb * 2**20, "file": MAX_FILE_BYTES, "processes": MAX_PROCESSES}
    sign = secrets.token_hex(16)  # so that a program that ends itself early, or prints something, has not passed
    command = [sys.executable, "-I", "-S", "-B", code_confined.__file__]
    with tempfile.TemporaryDirectory(prefix="prism-code-", ignore_cleanup_errors=True) as folder:
        program = {"answer": answer, "tests": tests, "limits": limits, "sign": sign}
        Path(folder, PROGRAM).write_text(json.dumps(program), encoding="utf-8")
        with subprocess.Popen(
            command,
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
            finally:
                with suppress(ProcessLookupError, PermissionError):  # it is gone; macOS says so in the other way
                    os.killpg(process.pid, signal.SIGKILL)
            told = _told(process)
    parsed = (sign + PARSES).encode()
    return Outcome(parses=told.startswith(parsed), passes=told == parsed + (sign + PASSES).encode())


def _told(process: subprocess.Popen[bytes]) -> bytes:
    """What lies in the pipe: no more than a verdict takes, and without waiting for whoever may still hold its other end."""
    assert process.stdout is not None, "it is a pipe"
    os.set_blocking(process.stdout.fileno(), False)
    with suppress(BlockingIOError):
        return os.read(process.stdout.fileno(), 256)
    return b""


def require_runs(*, seconds: float, memory_mb: int) -> None:
    """Check that a harmless program passes within the limits.

    Raises:
        ConfigurationError: If it does not.
    """
    if not run_confined("import collections, math, re, typing", "", seconds=seconds, memory_mb=memory_mb).passes:
        raise ConfigurationError(
            f"A program that only imports must pass within `seconds` {seconds} and `memory_mb` {memory_mb}, and does not, with "
            f"{sys.executable}; raise them, or use a Python that every user can read."
        )
