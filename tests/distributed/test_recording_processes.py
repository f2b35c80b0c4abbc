"""A recording by two processes, and by one that is killed, is that of one process left alone."""

import json
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from prism_plugin.testing import tiny_backbone, tiny_tokenizer

pytestmark = pytest.mark.slow

FILES = ("states.parquet", "held-out.parquet", "recording.json")
LAUNCH = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--dynamo_backend", "no"]


@pytest.fixture
def command(tmp_path):
    torch.manual_seed(0)
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    rows = [{"prompt": "the cat", "completion": " sat on a mat"[: 5 + number % 8]} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "data": "rows.jsonl",
        "backbone": "backbone",
        "preset": "random",
        "num-steps": 4,
        "batch-size": 2,
        "held-out": 0.1,
    }
    return ["record", "--device", "cpu", *(f"--{name}={value}" for name, value in options.items())]


def run(bench, module, *arguments, kill=None):
    """Run a module in a process of its own; with `kill`, until that says so."""
    started = subprocess.Popen(
        [sys.executable, "-m", *module, *arguments], cwd=bench.directory, env=bench.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while kill is not None and started.poll() is None and not kill():
        time.sleep(0.01)
    if kill is not None:
        started.send_signal(signal.SIGKILL)
    errors = started.communicate(timeout=240)[1]
    return started.returncode, errors


def _has(chunks, count):
    return len(list(chunks.glob("*.parquet"))) >= count


def test_the_same_bytes(bench, command):
    folders = {name: bench.directory / name for name in ("alone", "two", "killed")}
    code, errors = run(bench, ["prism_plugin.cli.main"], *command, "--output", "alone")
    assert code == 0, errors
    code, errors = run(bench, [*LAUNCH, "--mixed_precision", "no", "-m", "prism_plugin.cli.main"], *command, "--output", "two")
    assert code == 0, errors
    chunks = folders["killed"] / "chunks"
    for wanted in (1, 9, 20):
        code, _ = run(bench, ["prism_plugin.cli.main"], *command, "--output", "killed", kill=partial(_has, chunks, wanted))
        assert code == -signal.SIGKILL
    code, errors = run(bench, ["prism_plugin.cli.main"], *command, "--output", "killed")
    assert code == 0, errors
    for name in FILES:
        assert len({(folder / name).read_bytes() for folder in folders.values()}) == 1, name
    assert sorted(one.name for one in folders["killed"].iterdir()) == sorted(FILES)
