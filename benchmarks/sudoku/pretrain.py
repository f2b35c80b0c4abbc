"""Pretrain the shipped Sudoku backbone: a small BERT as a masked diffusion model, from scratch, on two CPU cores.

    python -m benchmarks.sudoku.pretrain --output runs/sudoku-pretrain --steps 4000 --stop-after 1000
    python -m benchmarks.sudoku.pretrain --output runs/sudoku-pretrain --steps 2000

The shipped weights were made by these two commands, since 4,000 steps proved to be more than needed. Writes `log.jsonl`
and, every 250 steps, a Hugging Face folder `step-N/`; started again with the same folder it goes on from `state.pt`. The
loss is the masked diffusion bound: mask ratio t uniform in `--t-range`, cross-entropy on masked cells weighted 1/t (MDLM,
arXiv 2406.07524, eq. 10 with the linear schedule).
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from prism_plugin.evaluation.tasks import sudoku, sudoku_grids

NUM_GRIDS, TRAIN_SEED, PROBE_SEED = 20_000, 0, 1
PROBE_PUZZLES, PROBE_EVERY, LOG_EVERY = 128, 250, 50
STATE_FILE = "state.pt"


def build_backbone() -> BertForMaskedLM:
    """Build the 0.8 M parameter BERT, randomly initialised from the global generator."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=sudoku.VOCAB_SIZE, hidden_size=128, num_hidden_layers=6, num_attention_heads=4,
            intermediate_size=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            max_position_embeddings=sudoku_grids.NUM_CELLS, type_vocab_size=1, pad_token_id=sudoku.PAD_TOKEN_ID,
        )
    )  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one character a token, `.` or `0` for the mask."""
    vocabulary = {".": sudoku.MASK_TOKEN_ID, **{str(digit): digit for digit in range(1, 10)}, "[PAD]": sudoku.PAD_TOKEN_ID}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.normalizer = normalizers.Replace("0", ".")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token=".", pad_token="[PAD]", model_max_length=sudoku_grids.NUM_CELLS
    )


def build_optimizers(model: BertForMaskedLM, name: str, learning_rate: float) -> list[torch.optim.Optimizer]:
    """AdamW throughout, or Muon for the matrices of the layers and AdamW for the rest."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layer." in n] if name == "muon" else []
    rest = [p for p in model.parameters() if all(p is not q for q in inner)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.01, fused=True)]
    if inner:
        optimizers.append(torch.optim.Muon(inner, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def rate(step: int, steps: int, warmup: int = 300) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine to 2 %."""
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def diffusion_loss(model: BertForMaskedLM, grids: torch.Tensor, t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Masked diffusion bound in nats per cell, averaged over the batch. `grids` is [batch, 81], `t` is [batch]."""
    masked = torch.rand(grids.shape, generator=generator) < t.unsqueeze(-1)
    logits = model(input_ids=torch.where(masked, sudoku.MASK_TOKEN_ID, grids)).logits
    weight = (masked / t.unsqueeze(-1))[masked]
    return (F.cross_entropy(logits[masked], grids[masked], reduction="none") * weight).sum() / grids.numel()


@torch.no_grad()
def probe(model: BertForMaskedLM, puzzles: torch.Tensor) -> float:
    """Share of puzzles solved by filling the surest cell first, one a step, never looking back."""
    grids = puzzles.clone()
    while (grids == sudoku.MASK_TOKEN_ID).any():
        logits = model(input_ids=grids).logits[..., 1:10]
        confidence, digits = logits.softmax(-1).max(-1)
        surest = confidence.masked_fill(grids != sudoku.MASK_TOKEN_ID, -1.0).argmax(-1, keepdim=True)
        grids = torch.where(
            grids.gather(1, surest) == sudoku.MASK_TOKEN_ID, grids.scatter(1, surest, digits.gather(1, surest) + 1), grids
        )
    return sudoku.is_solved(grids, puzzles).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the log, the state and the checkpoints")
    parser.add_argument("--steps", type=int, default=2_000, help="length of the cosine, in optimizer steps")
    parser.add_argument("--stop-after", type=int, help="stop at this step, to go on later (default: the cosine's end)")
    parser.add_argument("--batch-size", type=int, default=64, help="grids per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak rate")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon", help="for the matrices of the layers")
    parser.add_argument("--t-range", type=float, nargs=2, default=(0.05, 0.8), help="range of the mask ratio")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(TRAIN_SEED)
    model = build_backbone()
    optimizers = build_optimizers(model, args.optimizer, args.learning_rate)
    start = _restore(args.output, model, optimizers)
    grids = sudoku_grids.complete_grids(NUM_GRIDS, TRAIN_SEED)
    probe_puzzles, _ = sudoku_grids.make_puzzles(PROBE_PUZZLES, PROBE_SEED)

    began, total = time.time(), 0.0
    for step in range(start, min(args.steps, args.stop_after or args.steps)):
        generator = torch.Generator().manual_seed(step)  # a function of the step, so that going on changes nothing
        batch = sudoku_grids.augment(grids[torch.randint(NUM_GRIDS, (args.batch_size,), generator=generator)], generator)
        low, high = args.t_range
        t = low + (high - low) * torch.rand(args.batch_size, generator=generator)
        loss = diffusion_loss(model, batch, t, generator)
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
                record["solved"] = probe(model, probe_puzzles)
                _save(args.output, step + 1, model, optimizers)
            with (args.output / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            print(record, flush=True)


def _restore(output: Path, model: BertForMaskedLM, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load the last state, if there is one, and say how many steps it holds."""
    if not (output / STATE_FILE).exists():
        return 0
    state = torch.load(output / STATE_FILE, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(stored)
    return state["step"]


def _save(output: Path, step: int, model: BertForMaskedLM, optimizers: list[torch.optim.Optimizer]) -> None:
    folder = output / f"step-{step}"
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    state = {"step": step, "model": model.state_dict(), "optimizers": [one.state_dict() for one in optimizers]}
    beside = output / f".{STATE_FILE}"
    torch.save(state, beside)
    beside.replace(output / STATE_FILE)


if __name__ == "__main__":
    main()
