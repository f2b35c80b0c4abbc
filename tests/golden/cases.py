"""What is kept the same while the code that makes it changes: tokens of every preset, losses and gradients of every corruptor.

All models are in float64 and their weights come from integer arithmetic, so that no processor's rounding decides a token.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

import prism_plugin as prism
from prism_plugin.core import uniforms
from prism_plugin.evaluation.tasks import sudoku
from prism_plugin.sampling import PRESETS
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

SUDOKU = Path(__file__).parents[2] / "adapters" / "sudoku-9x9"
_MASK, _EOS, _LENGTH = 31, 1, 12


def _exact_weights(model: torch.nn.Module, sureness: float) -> None:
    """Fill every parameter with numbers that are the same on every processor; the LM head's are `sureness` times as large."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.ndim < 2 and not name.endswith("bias"):
                continue  # norms stay at 1
            noise = uniforms(0, 0, torch.tensor([number]), "golden", parameter.numel()).view(parameter.shape)
            scale = 3 * (sureness if "lm_head" in name else 1)
            parameter.copy_((noise - 0.5) * scale * parameter.shape[-1] ** -0.5)


# Those of several runs are made of one run, and have tests of their own.
ONE_RUN = [name for name, preset in PRESETS.items() if preset.trajectory is None]


def llama(*, lora: bool = True, sureness: float = 1) -> prism.PrismModel:
    """A Llama-shaped backbone with a head, and an adapter that is not at its start, in float64."""
    backbone = tiny_backbone("llama")
    settings = prism.PrismConfig(head_hidden_size=16)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if lora else None
    model = prism.attach_quality_head(backbone, settings, lora=adapter, tokenizer=tiny_tokenizer())
    _exact_weights(model, sureness)
    return model.double()


def _lowered(preset: str) -> dict[str, Any]:
    """Settings under which a model that knows little writes by threshold, and drafts anew within a few steps."""
    return {key: value for key, value in {"threshold": 0.2, "min_steps": 1}.items() if key in PRESETS[preset].settings}


def sampling_requests() -> Iterator[tuple[str, prism.RemaskingSampler, torch.Tensor, torch.Tensor]]:
    """Every preset of one run, on Sudoku and on ragged prompts with and without blocks, at temperature 0 and 1, by name."""
    solver = prism.PrismModel.from_pretrained(SUDOKU / "weights").double()
    puzzles = sudoku.read_puzzles(SUDOKU / "data" / "validation.txt")[:2]
    grids = torch.where(puzzles == 0, solver.mask_token_id, puzzles)
    for preset in ONE_RUN:
        sampler = prism.RemaskingSampler.from_preset(preset, solver, num_steps=9, **_lowered(preset))
        yield f"sudoku/{preset}", sampler, grids, torch.ones_like(grids)
    model = llama(sureness=4).eval()  # sure enough of some tokens for rules with a threshold
    prompts = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0], [13, 0, 0, 0, 0]])
    request = torch.cat((prompts, torch.zeros(3, _LENGTH, dtype=torch.int64)), dim=1)
    present = torch.zeros_like(request)
    for row, length in enumerate((5, 3, 1)):
        request[row, length : length + _LENGTH] = _MASK
        present[row, : length + _LENGTH] = 1
    for preset in ONE_RUN:
        for block_length in (None, 4):
            for temperature in (0.0, 1.0):
                settings = {"block_length": block_length, "temperature": temperature, "eos_token_id": _EOS, **_lowered(preset)}
                sampler = prism.RemaskingSampler.from_preset(preset, model, num_steps=9, **settings)
                yield f"llama/{preset}/{block_length}/{temperature}", sampler, request, present


def sampled() -> dict[str, dict[str, Any]]:
    """Tokens, forwards and remasks of every request, with a generator for each row."""
    results = {}
    for name, sampler, request, present in sampling_requests():
        generators = [torch.Generator().manual_seed(row) for row in range(len(request))]
        output = sampler.infill(request, present, generator=generators)
        results[name] = {
            "tokens": output.sequences.tolist(),
            "forwards": output.num_forward_passes.tolist(),
            "remasked": output.num_remasked.tolist(),
        }
    return results


_MIXTURE = [
    {"num_drafted": 2, "weight": 1},
    {"share": [0.2, 0.8], "num_looks": 3, "positions": "confidence", "tokens": "argmax", "weight": 2},
    {"num_drafted": 4, "num_looks": 2, "positions": "semi_autoregressive", "window": 5, "temperature": 0.7, "weight": 1},
]
OBJECTIVES = {
    "prism": {"name": "prism", "num_drafted": 3, "num_drafts": 2},
    "share": {"name": "prism", "num_drafted": 3, "diffusion_share": 0.5},
    "mixture": {"name": "prism", "drafts": _MIXTURE, "diffusion_weight": 2.0},
    "recorded": {"name": "prism_recorded", "quality_weight": 0.7},
}


class _Gradients(TrainerCallback):
    """Takes down two numbers of every gradient before each step: its norm, and its product with fixed numbers."""

    def __init__(self) -> None:
        self.steps: list[dict[str, list[float]]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: torch.nn.Module, **kwargs: Any) -> None:
        taken = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradient = parameter.grad.flatten().double()
                fixed = uniforms(1, 0, torch.zeros(1, dtype=torch.int64), "product", gradient.numel())[0].double()
                taken[name] = [gradient.norm().item(), (gradient @ fixed).item()]
        self.steps.append(taken)


def _rows(recorded: bool) -> list[dict[str, list[int]]]:
    ids = (3 + uniforms(2, 0, torch.arange(16), "tokens", 14) * 28).long()
    rows = [{"input_ids": row[: 8 + number % 7].tolist()} for number, row in enumerate(ids)]
    if recorded:
        for number, row in enumerate(rows):
            noise = uniforms(3, 0, torch.tensor([number]), "draft", len(row["input_ids"]))[0].tolist()
            row["draft_ids"] = [
                _MASK if draw < 0.3 else 3 + int(draw * 28) if draw > 0.7 else token
                for draw, token in zip(noise, row["input_ids"], strict=True)
            ]
    return rows


def trained(directory: str | Path) -> dict[str, dict[str, Any]]:
    """Losses, evaluation figures and gradients of three steps of each objective, with LoRA and with a frozen backbone."""
    results = {}
    for name, settings in OBJECTIVES.items():
        for lora in (True, False):
            objective = prism.get_objective(**settings)
            if not lora:  # nothing can be taught then, but the term is logged
                quiet = (replace(term, weight=0.0) if term.name == "diffusion" else term for term in objective.terms)
                objective = replace(objective, terms=tuple(quiet))
            rows = _rows(recorded=name == "recorded")
            model, gradients = llama(lora=lora), _Gradients()
            args = prism.PrismTrainingArguments(
                str(directory), max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=1, logging_steps=1,
                optim="sgd", learning_rate=0.05, lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no",
                report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = prism.PrismTrainer(
                model, args, objective=objective, train_dataset=rows, eval_dataset=rows, callbacks=[gradients]
            )  # fmt: skip
            trainer.train()
            keep = ("loss", "quality_loss", "diffusion_loss", "base_rate")
            logs = [[log[key] for key in keep] for log in trainer.state.log_history if "loss" in log]
            figures = trainer.evaluate()
            judged = ("loss", "quality_loss", "diffusion_loss", "base_rate", "quality_auroc", "quality_ece", "quality_brier")
            results[f"{name}/{'lora' if lora else 'frozen'}"] = {
                "logs": logs,
                "eval": {key: figures[f"eval_{key}"] for key in judged},
                "gradients": gradients.steps,
            }
    return results
