"""The public loops of LLaDA (arXiv 2502.09992), Fast-dLLM (arXiv 2505.22618) and PRISM's authors (arXiv 2510.01384), from
checkouts, on random weights."""

import importlib.util
import io
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Machine
from benchmarks.shapes import SHAPES, Shape, build_model, request
from prism_plugin.backbones import get_spec_by_model_type, register_backbone
from prism_plugin.decoding import CachedLook
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler

# Each by the file that has its `generate`, in a folder of checkouts.
NAMES = {
    "LLaDA": Path("LLaDA/generate.py"),
    "Fast-dLLM": Path("Fast-dLLM/llada/generate.py"),
    "PRISM": Path("PRISM/PRISM_llada/sampling.py"),
}
BESIDE = replace(SHAPES["llada"], batch=4, max_new_tokens=128)
# What Fast-dLLM's config has beside the sizes.
_CONFIG: dict[str, Any] = {
    "block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True, "rope_full_precision": True,
    "alibi": False, "include_bias": False, "bias_for_layer_norm": False, "weight_tying": False, "attention_dropout": 0.0,
    "residual_dropout": 0.0, "embedding_dropout": 0.0, "input_emb_norm": False,
}  # fmt: skip


def module_of(name: str, checkouts: Path) -> ModuleType:
    """The module that has a loop."""
    path = checkouts / NAMES[name]
    if not path.is_file():
        sys.exit(f"`--checkouts` must be a folder that holds {NAMES[name]}, found none in {checkouts}.")
    spec = importlib.util.spec_from_file_location(f"loop_of_{name.replace('-', '_').lower()}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # it imports the model beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def fast_dllm_model(theirs: ModuleType, shape: Shape, machine: Machine) -> PrismModel:
    """Fast-dLLM's LLaDA of a shape, with random weights that listen to their input."""
    sizes = {
        "d_model": shape.hidden_size, "n_heads": shape.num_attention_heads, "n_kv_heads": shape.num_attention_heads,
        "n_layers": shape.num_hidden_layers, "mlp_hidden_size": shape.intermediate_size, "vocab_size": shape.vocab_size,
        "embedding_size": shape.vocab_size, "max_sequence_length": max(1024, shape.length),
        "mask_token_id": shape.mask_token_id, "init_device": machine.device,
    }  # fmt: skip
    torch.manual_seed(0)
    config = theirs.LLaDAModelLM.config_class(**_CONFIG, **sizes)
    config.architectures, config.use_cache = ["LLaDAModelLM"], False  # which transformers would note and drop
    backbone = theirs.LLaDAModelLM(config, init_params=True).to(getattr(torch, machine.dtype)).to(machine.device).eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2 and "wte" not in name:
                parameter.mul_(3)
    spec = get_spec_by_model_type("llada", ["LLaDAModelLM"])
    register_backbone(replace(spec, attention_mask="none"), replace=True)  # theirs is of before it had one
    return attach_quality_head(backbone, PrismConfig(mask_token_id=shape.mask_token_id))


def prepare(name: str, checkouts: Path, shape: Shape, machine: Machine) -> Callable[[], Tensor]:
    """A loop that fills a request of a shape."""
    theirs = module_of(name, checkouts)
    options = _options(shape)
    prompts = request(shape, machine, shape.mask_token_id)[:, : shape.prompt_length]
    if name == "LLaDA":
        backbone = build_model(shape, machine).plain_backbone
        return lambda: theirs.generate(backbone, prompts, **options)
    if name == "PRISM":
        return _taking_back(theirs, build_model(shape, machine), request(shape, machine, shape.mask_token_id), shape)
    return _filling(theirs, fast_dllm_model(theirs, shape, machine), prompts, options)


def measure(checkouts: Path, machine: Machine, looks: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of Fast-dLLM's loop and of ours on its model, in turn, one row and four; and the share of tokens that agree."""
    torch.set_num_threads(machine.threads)
    theirs = module_of("Fast-dLLM", checkouts)
    model = fast_dllm_model(theirs, BESIDE, machine)
    clock = time.process_time if machine.device == "cpu" else time.perf_counter
    found: dict[str, Any] = {}
    for count in looks:
        steps = count * BESIDE.max_new_tokens // BESIDE.block_length
        options = _options(replace(BESIDE, num_steps=steps))
        sampler = RemaskingSampler(model, num_steps=steps, block_length=BESIDE.block_length, look=CachedLook())
        for rows in (1, BESIDE.batch):
            prompts = request(BESIDE, machine, BESIDE.mask_token_id)[:rows, : BESIDE.prompt_length]
            works = {"Fast-dLLM": _filling(theirs, model, prompts, options), "ours": _sampling(sampler, prompts)}
            seconds: dict[str, list[float]] = {name: [] for name in works}
            for number in range(rounds + 1):
                tokens = {}
                for name, work in works.items():
                    begun = clock()
                    tokens[name] = work()
                    if machine.device != "cpu":
                        torch.accelerator.synchronize()
                    seconds[name] += [clock() - begun] * (number > 0)
            same = (tokens["Fast-dLLM"] == tokens["ours"])[:, BESIDE.prompt_length :].float().mean().item()
            medians = {name: statistics.median(every) for name, every in seconds.items()}
            found[f"{count} looks, {rows} rows"] = {**medians, "tokens_that_agree": same}
    return found


def _options(shape: Shape) -> dict[str, Any]:
    """Of either loop's `generate`."""
    sizes = {"steps": shape.num_steps, "gen_length": shape.max_new_tokens, "block_length": shape.block_length}
    return {**sizes, "mask_id": shape.mask_token_id}


def _filling(theirs: ModuleType, model: PrismModel, prompts: Tensor, options: dict[str, Any]) -> Callable[[], Tensor]:
    """Fast-dLLM's loop, which is written for one row: it writes at the first row's positions. So rows come one by one."""
    backbone = model.plain_backbone
    return lambda: torch.cat([theirs.generate_with_dual_cache(backbone, row, **options)[0] for row in prompts.split(1)])


def _taking_back(theirs: ModuleType, model: PrismModel, tokens: Tensor, shape: Shape) -> Callable[[], Tensor]:
    """The loop of PRISM's authors, which takes a token back at each look, under its own autocast. What it prints is dropped."""
    looks = shape.num_steps * shape.block_length // shape.max_new_tokens  # of a block
    settings = {
        "tokenizer": SimpleNamespace(pad_token_id=shape.mask_token_id),  # what is to be filled
        "steps": looks * (shape.length // shape.block_length), "max_length": shape.length, "block_length": shape.block_length,
        "model_type": "PRISM", "unmasking": "prob_max", "remasking": True, "remasking_mode": "PRISM", "num_remasking": looks,
        "temperature": 0.0, "mask_id": shape.mask_token_id,
    }  # fmt: skip

    def judged(ids: Tensor) -> dict[str, Tensor]:
        output = model.plain_backbone(ids, output_hidden_states=True)
        return {"logits": output.logits, "remasking_conf": model.quality_head(output.hidden_states[-1])}

    judged.parameters = model.parameters  # by which it finds the device

    def work() -> Tensor:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return theirs.llada_inference(judged, tokens, **settings)

    return work


def _sampling(sampler: RemaskingSampler, prompts: Tensor) -> Callable[[], Tensor]:
    return lambda: sampler.sample(prompts, max_new_tokens=BESIDE.max_new_tokens).sequences


def in_words(found: dict[str, Any]) -> str:
    """A table in Markdown."""
    headings = ("looks a block, rows", "Fast-dLLM, s", "ours, s", "Fast-dLLM takes", "tokens that agree")
    lines = [f"| {' | '.join(headings)} |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, one in found.items():
        theirs, ours = one["Fast-dLLM"], one["ours"]
        lines.append(f"| {name} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} x | {one['tokens_that_agree']:.1%} |")
    return "\n".join(lines)
