"""Pretrain a small masked diffusion model from scratch, on one or two CPU cores: what the shipped backbones have in common.

Writes `log.jsonl` and, every 250 steps, a Hugging Face folder `step-N/`; started again with the same folder it goes on from
`state.pt`. The loss is the masked diffusion bound: mask ratio t uniform in `--t-range`, cross-entropy on masked positions
weighted 1/t (MDLM, arXiv 2406.07524, eq. 10 with the linear schedule).
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Protocol

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prism_plugin.types import TokenIds, TokenMask

TRAIN_SEED = 0
PROBE_EVERY, LOG_EVERY = 250, 50
STATE_FILE = "state.pt"


class Domain(Protocol):
    """What a backbone learns."""

    mask_token_id: int
    steps: int
    batch_size: int
    t_range: tuple[float, float]

    def build_backbone(self) -> PreTrainedModel:
        """The model, randomly initialised from the global generator."""

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer."""

    def batch(self, size: int, step: int, generator: torch.Generator) -> tuple[TokenIds, TokenMask]:
        """Rows of a step, and where they may be masked: a function of the step, so that going on changes nothing."""

    def probe(self, model: PreTrainedModel) -> dict[str, float]:
        """Figures by which a checkpoint is chosen."""


def build_optimizers(model: PreTrainedModel, name: str, learning_rate: float, layers: str) -> list[torch.optim.Optimizer]:
    """AdamW throughout, or Muon for the matrices of the layers and AdamW for the rest.

    Args:
        model: What is trained.
        name: "adamw" or "muon".
        learning_rate: Peak rate.
        layers: Part of the names of the layers' weights.
    """
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and layers in n] if name == "muon" else []
    rest = [p for p in model.parameters() if all(p is not q for q in inner)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.01, fused=True)]
    if inner:
        optimizers.append(torch.optim.Muon(inner, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def rate(step: int, steps: int, warmup: int = 300) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine to 2 %."""
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def diffusion_loss(
    model: PreTrainedModel,
    ids: TokenIds,
    maskable: TokenMask,
    t: torch.Tensor,
    generator: torch.Generator,
    mask_token_id: int,
) -> torch.Tensor:
    """Masked diffusion bound in nats per maskable token, averaged over the batch. `t` is [batch]."""
    masked = (torch.rand(ids.shape, generator=generator) < t.unsqueeze(-1)) & maskable
    logits = model(input_ids=torch.where(masked, mask_token_id, ids)).logits
    weight = (masked / t.unsqueeze(-1))[masked]
    return (F.cross_entropy(logits[masked], ids[masked], reduction="none") * weight).sum() / maskable.sum()


def pretrain(domain: Domain, about: str, *, layers: str) -> None:
    """Pretrain as the command line says.

    Args:
        domain: What is learnt.
        about: Help of the command.
        layers: Part of the names of the layers' weights, which Muon trains.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the log, the state and the checkpoints")
    parser.add_argument("--steps", type=int, default=domain.steps, help="length of the cosine, in optimizer steps")
    parser.add_argument("--stop-after", type=int, help="stop at this step, to go on later (default: the cosine's end)")
    parser.add_argument("--batch-size", type=int, default=domain.batch_size, help="rows per step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak rate (default: %(default)s)")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon", help="for the matrices of the layers")
    parser.add_argument("--t-range", type=float, nargs=2, default=domain.t_range, help="range of the mask ratio")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)

    torch.manual_seed(TRAIN_SEED)
    model = domain.build_backbone()
    optimizers = build_optimizers(model, args.optimizer, args.learning_rate, layers)
    start = _restore(args.output, model, optimizers)
    began, total = time.time(), 0.0
    for step in range(start, min(args.steps, args.stop_after or args.steps)):
        generator = torch.Generator().manual_seed(step)
        ids, maskable = domain.batch(args.batch_size, step, generator)
        low, high = args.t_range
        t = low + (high - low) * torch.rand(args.batch_size, generator=generator)
        loss = diffusion_loss(model, ids, maskable, t, generator, domain.mask_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * rate(step, args.steps)
            optimizer.step()
            optimizer.zero_grad()
        total += loss.item()
        if (step + 1) % LOG_EVERY == 0:
            record = {"step": step + 1, "loss": total / LOG_EVERY, "seconds": time.time() - began}
            total = 0.0
            if (step + 1) % PROBE_EVERY == 0:
                record |= domain.probe(model)
                _save(args.output, step + 1, model, optimizers, domain)
            with (args.output / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            print(record, flush=True)


def _restore(output: Path, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load the last state, if there is one, and say how many steps it holds."""
    if not (output / STATE_FILE).exists():
        return 0
    state = torch.load(output / STATE_FILE, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(stored)
    return state["step"]


def _save(output: Path, step: int, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], domain: Domain) -> None:
    folder = output / f"step-{step}"
    model.save_pretrained(folder)
    domain.build_tokenizer().save_pretrained(folder)
    state = {"step": step, "model": model.state_dict(), "optimizers": [one.state_dict() for one in optimizers]}
    beside = output / f".{STATE_FILE}"
    torch.save(state, beside)
    beside.replace(output / STATE_FILE)
