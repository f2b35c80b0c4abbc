"""Runs scripts, each in a process of its own that need not import torch and transformers again, which takes seconds.

One process imports what is not ours, with warnings as errors, and forks for each script. So a script still imports prism_plugin
itself, and finds nothing of the one before.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType

ROOT = Path(__file__).resolve().parents[1]
SERVER = """
import json, os, runpy, signal, sys, warnings
import accelerate, datasets, peft, safetensors.torch, torch, transformers.trainer, transformers.models.bert.modeling_bert
assert not [name for name in sys.modules if name.startswith("prism_plugin")]
for line in sys.stdin:
    script, folder, ignored, printed, settings, timeout = json.loads(line)
    children = []
    for (stdout, stderr), own in zip(printed, settings):
        children.append(os.fork())
        if children[-1] == 0:
            for number, path in enumerate((os.devnull, stdout, stderr)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(folder)
            os.environ.update(own)
            signal.alarm(timeout)
            sys.argv, sys.path[0] = [script], os.path.dirname(script)
            if ignored:
                warnings.filterwarnings("ignore", message=ignored)
            runpy.run_path(script, run_name="__main__")
            sys.exit()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Scripts:
    """Open, it runs scripts as `python -W error SCRIPT` would, with the repository on their path."""

    def __enter__(self) -> "Scripts":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.communicate()

    def run(self, script: Path, folder: Path, *, output: Path, ignored: str = "", timeout: int = 300) -> SimpleNamespace:
        """Run one in a folder, and tell its `returncode`, `stdout` and `stderr`.

        Args:
            script: The file.
            folder: Where it runs.
            output: Another folder, for what it prints.
            ignored: How a warning begins that is not the script's concern.
            timeout: Seconds after which it is killed.
        """
        return self._run(script, folder, output, ignored, timeout, [{}])[0]

    def run_together(
        self, script: Path, folder: Path, *, output: Path, settings: Sequence[Mapping[str, str]], timeout: int = 300
    ) -> list[SimpleNamespace]:
        """Run one in several processes at the same time, each with environment variables of its own."""
        return self._run(script, folder, output, "", timeout, settings)

    def _run(
        self, script: Path, folder: Path, output: Path, ignored: str, timeout: int, settings: Sequence[Mapping[str, str]]
    ) -> list[SimpleNamespace]:
        printed = [[str(output / f"{name}{number or ''}") for name in ("stdout", "stderr")] for number in range(len(settings))]
        self._server.stdin.write(json.dumps([str(script), str(folder), ignored, printed, settings, timeout]) + "\n")
        self._server.stdin.flush()
        found = []
        for returncode, paths in zip(json.loads(self._server.stdout.readline()), printed, strict=True):
            stdout, stderr = (Path(path).read_text(encoding="utf-8") for path in paths)
            found.append(SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr))
        return found
