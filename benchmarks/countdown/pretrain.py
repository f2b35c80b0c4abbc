"""Pretrain the shipped Countdown backbone: a small Llama with attention to both sides, from scratch, on one CPU core.

    python -m benchmarks.countdown.pretrain --output runs/countdown-pretrain

How it goes on after a kill, and what the loss is, is told in `benchmarks/pretraining.py`.
"""

import random
from functools import cached_property
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.countdown.problems import draw_problem, held_out_problems
from benchmarks.pretraining import pretrain
from prism_plugin.evaluation.compare import answer_rows
from prism_plugin.evaluation.tasks import Countdown
from prism_plugin.evaluation.tasks.countdown import CHARACTERS
from prism_plugin.evaluation.tasks.countdown_numbers import Problem
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.types import TokenIds, TokenMask

END, MASK = "[EOS]", "[MASK]"
VOCABULARY = {token: number for number, token in enumerate((*CHARACTERS, END, MASK))}
# The answer of two equations, "20+20=40,40+40=80" for one, and its end.
WIDTH = 18
PROBE_PROBLEMS, PROBE_SEED = 256, 1


class CountdownTexts:
    """Problems that are not held out, each with the solution that it was made by, filled with ends to one length."""

    mask_token_id = VOCABULARY[MASK]
    steps, batch_size, t_range = 3_000, 128, (0.1, 1.0)

    def build_backbone(self) -> LlamaForCausalLM:
        """Build the 1.3 M parameter Llama."""
        end = VOCABULARY[END]
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(VOCABULARY), hidden_size=128, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
                intermediate_size=384, max_position_embeddings=128, tie_word_embeddings=False, is_causal=False,
                use_cache=False, bos_token_id=None, eos_token_id=end, pad_token_id=end, mask_token_id=self.mask_token_id,
            )
        )  # fmt: skip

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Build the tokenizer: one character a token."""
        tokenizer = Tokenizer(models.WordLevel(VOCABULARY))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, mask_token=MASK, eos_token=END, pad_token=END, model_max_length=128
        )

    @cached_property
    def problems(self) -> list[Problem]:
        """What checkpoints are chosen by."""
        return held_out_problems(PROBE_PROBLEMS, PROBE_SEED)

    def batch(self, size: int, step: int, generator: torch.Generator) -> tuple[TokenIds, TokenMask]:
        """Problems of a step."""
        rng = random.Random(step)
        texts = []
        while len(texts) < size:
            problem, answer = draw_problem(rng)
            if not problem.is_held_out:
                texts.append((f"{problem}:", answer))
        length = max(len(prompt) for prompt, _ in texts) + WIDTH
        ids = torch.full((size, length), VOCABULARY[END])
        maskable = torch.ones_like(ids, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(texts):
            own = torch.tensor([VOCABULARY[character] for character in prompt + answer])
            ids[row, : len(own)] = own
            maskable[row, : len(prompt)] = False
        return ids, maskable

    def probe(self, model: LlamaForCausalLM) -> dict[str, float]:
        """Share of held-out problems solved in confidence order: with one token a look, and with four."""
        attached = attach_quality_head(model, PrismConfig(), tokenizer=self.build_tokenizer())
        try:
            found = {
                name: self._solved(attached, looks) for name, looks in (("solved", WIDTH), ("solved_by_fours", -(-WIDTH // 4)))
            }
        finally:
            attached.detach()
        return found

    def _solved(self, model: PrismModel, num_steps: int) -> float:
        sampler = RemaskingSampler.from_preset("confidence", model, num_steps=num_steps)
        figures: dict[str, Any] = answer_rows(Countdown(), sampler, self.problems, seed=0).figures
        return figures["success"].value


if __name__ == "__main__":
    pretrain(CountdownTexts(), __doc__, layers=".layers.")
