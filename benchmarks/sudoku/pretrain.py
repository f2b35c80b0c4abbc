"""Pretrain the shipped Sudoku backbone: a small BERT as a masked diffusion model, from scratch, on two CPU cores.

    python -m benchmarks.sudoku.pretrain --output runs/sudoku-pretrain --steps 4000 --stop-after 1000
    python -m benchmarks.sudoku.pretrain --output runs/sudoku-pretrain --steps 2000

The shipped weights were made by these two commands, since 4,000 steps proved to be more than needed. How it goes on after a
kill, and what the loss is, is told in `benchmarks/pretraining.py`.
"""

from functools import cached_property

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from benchmarks.pretraining import TRAIN_SEED, pretrain
from prism_plugin.evaluation.tasks import sudoku, sudoku_grids
from prism_plugin.types import TokenIds, TokenMask

NUM_GRIDS, PROBE_PUZZLES, PROBE_SEED = 20_000, 128, 1


class SudokuGrids:
    """Complete grids, each moved by a random symmetry."""

    mask_token_id = sudoku.MASK_TOKEN_ID
    steps, batch_size, t_range = 2_000, 64, (0.05, 0.8)

    def build_backbone(self) -> BertForMaskedLM:
        """Build the 0.8 M parameter BERT."""
        return BertForMaskedLM(
            BertConfig(
                vocab_size=sudoku.VOCAB_SIZE, hidden_size=128, num_hidden_layers=6, num_attention_heads=4,
                intermediate_size=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                max_position_embeddings=sudoku_grids.NUM_CELLS, type_vocab_size=1, pad_token_id=sudoku.PAD_TOKEN_ID,
            )
        )  # fmt: skip

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Build the tokenizer: one character a token, `.` or `0` for the mask."""
        vocabulary = {".": sudoku.MASK_TOKEN_ID, **{str(digit): digit for digit in range(1, 10)}, "[PAD]": sudoku.PAD_TOKEN_ID}
        tokenizer = Tokenizer(models.WordLevel(vocabulary))
        tokenizer.normalizer = normalizers.Replace("0", ".")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, mask_token=".", pad_token="[PAD]", model_max_length=sudoku_grids.NUM_CELLS
        )

    @cached_property
    def grids(self) -> TokenIds:
        """What is learnt."""
        return sudoku_grids.complete_grids(NUM_GRIDS, TRAIN_SEED)

    @cached_property
    def puzzles(self) -> TokenIds:
        """What checkpoints are chosen by."""
        return sudoku_grids.make_puzzles(PROBE_PUZZLES, PROBE_SEED)[0]

    def batch(self, size: int, step: int, generator: torch.Generator) -> tuple[TokenIds, TokenMask]:
        """Some of the grids, moved; every cell may be masked."""
        rows = self.grids[torch.randint(NUM_GRIDS, (size,), generator=generator)]
        moved = sudoku_grids.augment(rows, generator)
        return moved, torch.ones_like(moved, dtype=torch.bool)

    @torch.no_grad()
    def probe(self, model: BertForMaskedLM) -> dict[str, float]:
        """Share of puzzles solved by filling the surest cell first, one a step, never looking back."""
        grids = self.puzzles.clone()
        while (grids == sudoku.MASK_TOKEN_ID).any():
            logits = model(input_ids=grids).logits[..., 1:10]
            confidence, digits = logits.softmax(-1).max(-1)
            surest = confidence.masked_fill(grids != sudoku.MASK_TOKEN_ID, -1.0).argmax(-1, keepdim=True)
            grids = torch.where(
                grids.gather(1, surest) == sudoku.MASK_TOKEN_ID, grids.scatter(1, surest, digits.gather(1, surest) + 1), grids
            )
        return {"solved": sudoku.is_solved(grids, self.puzzles).float().mean().item()}


if __name__ == "__main__":
    pretrain(SudokuGrids(), __doc__, layers=".layer.")
