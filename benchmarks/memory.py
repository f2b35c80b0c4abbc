"""Estimated against measured memory of a training step, on the CPU of a Linux machine: `python -m benchmarks.memory`.

Each shape is trained for three steps by `PrismTrainer` in a process of its own. Measured is the peak of its resident memory
(VmHWM of /proc/self/status, set back with /proc/self/clear_refs) less what was resident before the model was built, when a
model of next to no size had already been trained, so that libraries and kernels are in memory. glibc's malloc would keep freed
blocks; with MALLOC_MMAP_THRESHOLD_=65536 every tensor of 64 KiB or more is a mapping of its own that goes back to the system
when it is freed, so that resident memory follows the tensors that are alive.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
BERT = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 1024,
    "num_attention_heads": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
LLADA = {  # LLaDA's block is Llama's without the causal mask
    "model_type": "llama", "is_causal": False, "vocab_size": 126464, "hidden_size": 384, "num_hidden_layers": 10,
    "intermediate_size": 1152, "num_attention_heads": 6, "num_key_value_heads": 6,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "BERT, LoRA": {"config": BERT, "lora": 8, "batch_size": 16, "length": 128},
    "BERT, all weights": {"config": BERT, "batch_size": 4, "length": 128, "masked_share": 0.5},
    "LLaDA-shaped, LoRA": {"config": LLADA, "lora": 64, "batch_size": 4, "length": 256, "masked_share": 0.25},
    "LLaDA-shaped, LoRA, checkpointed": {
        "config": LLADA, "lora": 64, "batch_size": 4, "length": 256, "masked_share": 0.25, "checkpointing": True,
    },
    "LLaDA-shaped, every position masked": {"config": LLADA, "lora": 64, "batch_size": 2, "length": 128},
}  # fmt: skip


def main() -> None:
    """Measure every shape, each in a fresh process, and print estimate, measurement and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    shape = parser.parse_args().shape
    if shape:
        print(json.dumps(estimate_and_measure(**json.loads(shape))))
        return
    print(f"{'shape':<38}{'estimate, MB':>14}{'measured, MB':>14}{'ratio':>8}")
    for name, settings in SHAPES.items():
        command = [sys.executable, "-m", "benchmarks.memory", "--shape", json.dumps(settings)]
        done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["estimate"] / found["measured"]
        print(f"{name:<38}{found['estimate'] / 1e6:>14.0f}{found['measured'] / 1e6:>14.0f}{ratio:>8.2f}")


def estimate_and_measure(
    *,
    config: dict[str, Any],
    batch_size: int,
    length: int,
    lora: int | None = None,
    masked_share: float = 1.0,
    checkpointing: bool = False,
) -> dict[str, int]:
    """Estimate the memory of one shape on the meta device, then train it for real.

    Args:
        config: The backbone's config.
        batch_size: Rows.
        length: Tokens of a row.
        lora: Rank of LoRA; None trains every weight.
        masked_share: Masking probability of every row.
        checkpointing: Checkpoint activations.

    Returns:
        Bytes, by "estimate" and "measured".
    """
    import torch

    from prism_plugin.training.memory import StepShape, estimate_memory

    with torch.device("meta"):
        without_weights = _model(config, lora)
    estimate = estimate_memory(without_weights, StepShape(batch_size, length, masked_share=masked_share))
    _train(_model({**config, "vocab_size": 100, "num_hidden_layers": 1}, lora), 1, 8, masked_share, checkpointing)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    _train(_model(config, lora), batch_size, length, masked_share, checkpointing)
    measured = _resident("VmHWM") - before
    return {"estimate": estimate.total_checkpointed if checkpointing else estimate.total, "measured": measured}


def _model(config: dict[str, Any], lora: int | None) -> Any:
    import transformers
    from peft import LoraConfig

    from prism_plugin.modeling import PrismConfig, attach_quality_head

    auto_class = transformers.AutoModelForCausalLM if config["model_type"] == "llama" else transformers.AutoModelForMaskedLM
    backbone = auto_class.from_config(transformers.AutoConfig.for_model(**config))
    settings = PrismConfig(mask_token_id=5, train_backbone=lora is None)
    return attach_quality_head(backbone, settings, lora=lora and LoraConfig(r=lora))


def _train(model: Any, batch_size: int, length: int, masked_share: float, checkpointing: bool) -> None:
    from prism_plugin.training import PrismTrainer, PrismTrainingArguments, get_objective

    rows = [{"example_id": i, "input_ids": [7] * length, "maskable": [True] * length} for i in range(3 * batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        args = PrismTrainingArguments(
            folder, max_steps=3, per_device_train_batch_size=batch_size, activation_checkpointing=checkpointing,
            report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        objective = get_objective("prism", t_min=masked_share, t_max=masked_share)
        PrismTrainer(model, args, objective=objective, train_dataset=rows).train()


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{name}:\s+(\d+) kB", status).group(1)) * 1024


if __name__ == "__main__":
    main()
