import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

# Runs the verb in a process that kills itself, without any chance to clean up, at the given call of a function.
DRIVER = """
import importlib, os, signal, sys
from prism_plugin.cli import train
module, name, count, after = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "after"
owner = importlib.import_module(module)
for part in name.split(".")[:-1]:
    owner = getattr(owner, part)
original, calls = getattr(owner, name.split(".")[-1]), []
def deadly(*args, **kwargs):
    calls.append(1)
    if len(calls) < count:
        return original(*args, **kwargs)
    if after:
        original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name.split(".")[-1], deadly)
sys.argv[1:] = sys.argv[5:]
sys.exit(train.main())
"""


def result_of(directory):
    """Weights and log of a finished run; how long things took is left out."""
    state = json.loads((directory / "checkpoint-10" / "trainer_state.json").read_text())
    weights = load_file(directory / "adapter_model.safetensors") | load_file(directory / "quality_head.safetensors")
    return weights, [log for log in state["log_history"] if "train_runtime" not in log]


@pytest.mark.soak
@pytest.mark.multiprocess
def test_killed_twice_and_resumed_equals_uninterrupted(bench):
    recipe = bench.write_recipe(bench.directory)
    assert bench.run_verb(recipe, "--output_dir", str(bench.directory / "whole")) == 0

    def killed(*where):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, *where, "--recipe", str(recipe)],
            env=bench.environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr

    output_dir = bench.directory / "run"
    # Second checkpoint: the optimizer's state is written (its first torch.save), the rest is not.
    killed("torch", "save", "4", "after")
    assert (output_dir / "checkpoint-4").is_dir()
    assert (output_dir / ".building-checkpoint-8" / "optimizer.pt").exists()
    # Resumed at 4, between the second backward and its optimizer step.
    killed("prism_plugin.training.trainer", "PrismTrainer.training_step", "2", "after")
    assert not (output_dir / "checkpoint-8").exists()
    assert bench.run_verb(recipe) == 0

    (weights, log), (expected_weights, expected_log) = result_of(output_dir), result_of(bench.directory / "whole")
    assert log == expected_log
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)
    assert not list(output_dir.glob(".*"))
