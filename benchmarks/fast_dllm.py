"""Fast-dLLM's own loop with its dual cache (arXiv 2505.22618) beside ours, on its own model with random weights."""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Machine
from prism_plugin.backbones import get_spec_by_model_type, register_backbone
from prism_plugin.decoding import CachedLook
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler

PROMPT, NEW, BLOCK, ROWS = 64, 128, 32, 4
# LLaDA's own names of the sizes of `benchmarks.shapes.SHAPES["llada"]`.
CONFIG: dict[str, Any] = {
    "d_model": 256, "n_heads": 4, "n_kv_heads": 4, "n_layers": 6, "mlp_hidden_size": 768, "vocab_size": 126_464,
    "embedding_size": 126_464, "max_sequence_length": 1024, "block_type": "llama", "layer_norm_type": "rms",
    "activation_type": "silu", "rope": True, "rope_full_precision": True, "alibi": False, "include_bias": False,
    "bias_for_layer_norm": False, "weight_tying": False, "mask_token_id": 126_336, "attention_dropout": 0.0,
    "residual_dropout": 0.0, "embedding_dropout": 0.0, "input_emb_norm": False, "init_device": "cpu",
}  # fmt: skip


def load(checkouts: Path, machine: Machine) -> tuple[PrismModel, Callable[..., tuple[Tensor, int]]]:
    """Fast-dLLM's LLaDA with random weights, and its `generate_with_dual_cache`."""
    folder = checkouts / "Fast-dLLM" / "llada"
    if not (folder / "generate.py").is_file():
        sys.exit(f"`--checkouts` must be a folder that holds Fast-dLLM/llada/generate.py, found none in {checkouts}.")
    sys.path.insert(0, str(folder))
    try:
        theirs = importlib.import_module("generate")
        configuration = importlib.import_module("model.configuration_llada")
    finally:
        sys.path.remove(str(folder))
    torch.manual_seed(0)
    config = configuration.LLaDAConfig(**CONFIG)
    config.architectures, config.use_cache = ["LLaDAModelLM"], False  # which transformers would note and drop
    backbone = theirs.LLaDAModelLM(config, init_params=True).to(getattr(torch, machine.dtype)).to(machine.device).eval()
    with torch.no_grad():  # a fresh model says the same everywhere
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2 and "wte" not in name:
                parameter.mul_(3)
    spec = replace(get_spec_by_model_type("llada", ["LLaDAModelLM"]), attention_mask="none")  # theirs is of before it had one
    register_backbone(spec, replace=True)
    return attach_quality_head(backbone, PrismConfig(mask_token_id=config.mask_token_id)), theirs


def measure(checkouts: Path, machine: Machine, looks: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of both for each number of looks a block, one row and four, in turn; and the share of tokens that agree."""
    torch.set_num_threads(machine.threads)
    model, theirs = load(checkouts, machine)
    prompts = torch.randint(0, 100_000, (ROWS, PROMPT), generator=torch.Generator().manual_seed(1)).to(machine.device)
    clock = time.process_time if machine.device == "cpu" else time.perf_counter
    found: dict[str, Any] = {}
    for count in looks:
        steps = count * NEW // BLOCK
        sampler = RemaskingSampler(model, num_steps=steps, block_length=BLOCK, look=CachedLook())
        for rows in (1, ROWS):
            given = prompts[:rows]

            def fast(given: Tensor = given, steps: int = steps) -> Tensor:
                # written for one row: its positions are those of the first, so several are filled one after the other
                options = {"steps": steps, "gen_length": NEW, "block_length": BLOCK}
                return torch.cat([theirs.generate_with_dual_cache(model.plain_backbone, row, **options)[0]
                                  for row in given.split(1)])  # fmt: skip

            def ours(given: Tensor = given, sampler: RemaskingSampler = sampler) -> Tensor:
                return sampler.sample(given, max_new_tokens=NEW).sequences

            seconds: dict[str, list[float]] = {"Fast-dLLM": [], "ours": []}
            for number in range(rounds + 1):
                tokens = {}
                for name, work in (("Fast-dLLM", fast), ("ours", ours)):
                    begun = clock()
                    tokens[name] = work()
                    if machine.device != "cpu":
                        torch.accelerator.synchronize()
                    seconds[name] += [clock() - begun] * (number > 0)
            same = (tokens["Fast-dLLM"] == tokens["ours"])[:, PROMPT:].float().mean().item()
            medians = {name: statistics.median(every) for name, every in seconds.items()}
            found[f"{count} looks, {rows} rows"] = {**medians, "tokens_that_agree": same}
    return found


def in_words(found: dict[str, Any]) -> str:
    """A table in Markdown."""
    lines = [
        "| looks a block, rows | Fast-dLLM, s | ours, s | Fast-dLLM takes | tokens that agree |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, one in found.items():
        theirs, ours = one["Fast-dLLM"], one["ours"]
        lines.append(f"| {name} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} x | {one['tokens_that_agree']:.1%} |")
    return "\n".join(lines)
