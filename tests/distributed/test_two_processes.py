import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

LEARNT = ("loss", "grad_norm", "quality_loss", "diffusion_loss", "base_rate", "learning_rate", "head_learning_rate")


def launch_two(bench, recipe, *options):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["-m", "prism_plugin.cli.train", "--recipe", str(recipe), *map(str, options)]
    done = subprocess.run(command, env=bench.environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result_of(directory):
    state = json.loads((directory / "checkpoint-10" / "trainer_state.json").read_text())
    logs = [log for log in state["log_history"] if "quality_loss" in log]
    return logs, load_file(directory / "adapter_model.safetensors") | load_file(directory / "quality_head.safetensors")


@pytest.mark.multiprocess
def test_two_processes_that_accumulate_equal_one(bench):
    # With Adam's own 1e-8, a gradient next to zero moves its weight by the learning rate, to the side that rounding chooses.
    recipe = bench.write_recipe(bench.directory, logging_steps=1, adam_epsilon=1e-2)
    backbone_config = bench.directory / "backbone" / "config.json"
    settings = json.loads(backbone_config.read_text())  # dropout draws per process, so it cannot be the same on two
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    backbone_config.write_text(json.dumps(settings))
    folders, options = [bench.directory / name for name in ("one", "two")], ["--eval_share", "0.2"]
    assert bench.run_verb(recipe, "--output_dir", folders[0], *options) == 0
    options += ["--json", "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"]
    printed = launch_two(bench, recipe, "--output_dir", folders[1], *options)
    (one, one_weights), (two, two_weights) = map(result_of, folders)
    assert len(one) == 10
    for first, second in zip(one, two, strict=True):
        assert [first[key] for key in LEARNT] == pytest.approx([second[key] for key in LEARNT], rel=1e-4)
    for name in one_weights:
        torch.testing.assert_close(two_weights[name], one_weights[name], atol=1e-4, rtol=0)
    assert json.loads(printed)["steps"] == 10, "only the main process may print"
