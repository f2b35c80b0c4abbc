import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from distributed.sharded_run import HEADS, TEXTS, make_trainer
from safetensors.torch import load_file

from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismModel
from prism_plugin.testing import tiny_backbone
from prism_plugin.training.sharding import check_sharding

SCRIPT = Path(__file__).with_name("sharded_run.py")
LEARNT = ("loss", "grad_norm", "quality_loss", "diffusion_loss", "base_rate")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Ten runs of two processes each, in one start."""
    folder = tmp_path_factory.mktemp("sharded")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT), str(folder)],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def weights_of(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def log_of(state):
    return [[entry[key] for key in LEARNT] for entry in state if "quality_loss" in entry]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_every_parameter_is_sharded_and_only_the_trained_ones_are_gathered(sharded):
    told = json.loads((sharded / "run" / "told.json").read_text())
    assert told["whole"] == []
    assert told["gathered"]
    assert all("lora_" in name or name.startswith("quality_head.") for name in told["gathered"])
    assert any(name.startswith("quality_head.") for name in told["gathered"])
    files = {path.name for path in (sharded / "run" / "checkpoint-4").iterdir()}
    assert {"adapter_model.safetensors", "quality_head.safetensors", "optimizer.bin"} <= files
    assert not [name for name in files if name.startswith(("model", "pytorch_model"))]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["run", "all", *HEADS])
def test_a_sharded_run_equals_an_unsharded_one(sharded, tmp_path, kind):
    trainer = make_trainer(tmp_path / "one", train_backbone=kind == "all", head=kind)
    trainer.train()
    trainer.save_model()
    state = json.loads((sharded / kind / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    # Holds on every processor: a process and a micro-batch make the same calls on the same rows, so bfloat16 rounds alike. What
    # differs is in float32, the mean of the two gradients and the norm that clips them to 1: an entry by d, a few 2^-24.
    # Adam divides by no less than epsilon, so a step differs by at most 2 * d / epsilon (once for the mean of the gradients,
    # once for their root mean square), and the weights by that times the learning rates, 0.025 in sum: 5 * d, under 3e-6.
    for here, there in zip(log_of(trainer.state.log_history), log_of(state), strict=True):
        assert there == pytest.approx(here, rel=1e-5)
    expected, found = weights_of(tmp_path / "one"), weights_of(sharded / kind)
    assert expected.keys() == found.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["run", "all"])
def test_a_resumed_sharded_run_equals_an_uninterrupted_one(sharded, kind):
    whole, resumed = weights_of(sharded / kind), weights_of(sharded / ("resumed" if kind == "run" else "all-resumed"))
    assert whole.keys() == resumed.keys()
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_process_loads_what_two_saved(sharded):
    torch.manual_seed(0)
    model = PrismModel.from_pretrained(sharded / "run", backbone=tiny_backbone("llama").to(torch.bfloat16))
    assert model.score(TEXTS).std() > 0
    assert PrismModel.from_pretrained(sharded / "all").score(TEXTS).std() > 0


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_loss_that_is_infinite_on_one_process_stops_both(sharded, kind):
    folder = sharded / f"diverged-{kind}"
    told = {path.name: path.read_text() for path in folder.glob("told-*.txt")}
    assert sorted(told) == ["told-0.txt", "told-1.txt"]
    assert len(set(told.values())) == 1
    assert (
        "the loss of step 3 is NaN or infinite, so the step was not taken; the last whole checkpoint is" in told["told-0.txt"]
    )
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2"}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_shift_that_one_process_sees_stops_both(sharded, kind):
    folder = sharded / f"shifted-{kind}"
    told = {path.name: path.read_text() for path in folder.glob("told-*.txt")}
    assert sorted(told) == ["told-0.txt", "told-1.txt"]
    assert len(set(told.values())) == 1
    assert "aligned as 'same_position', but as 'next_token' they fill the masks of this data better" in told["told-0.txt"]


@pytest.mark.parametrize(
    ("settings", "mixed_precision", "words"),
    [
        ({"fsdp_version": 1}, "no", "needs FSDP version 2, got 1"),
        ({"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"}, "no", "FULL_STATE_DICT, got SHARDED_STATE_DICT"),
        ({"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}, "bf16", "would cast the float32 head and LoRA"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # accelerate's advice about version 1
def test_settings_that_would_spoil_the_head_or_its_checkpoints_are_refused(settings, mixed_precision, words):
    with pytest.raises(ConfigurationError, match=words):
        check_sharding(FullyShardedDataParallelPlugin(**settings), mixed_precision)
    good = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    check_sharding(good, "no")
    with pytest.raises(ConfigurationError, match="leaves 4-bit weights whole on every process"):
        check_sharding(good, "no", is_quantized=True)
    with pytest.raises(ConfigurationError, match="save the backbone with its resized embeddings into a folder, and load it"):
        check_sharding(good, "no", has_new_tokens=True)
