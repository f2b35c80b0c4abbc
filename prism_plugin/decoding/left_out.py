"""A look that asks for each token again while it is hidden: what the model says of it without having seen it."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from prism_plugin.core.selection import true_places
from prism_plugin.core.validation import require_int
from prism_plugin.decoding.looks import LOOKS, Logits, PlainLook, Seen, Want, looks_of_block, told
from prism_plugin.decoding.state import Memory, State
from prism_plugin.modeling.headed import HeadedBackbone


@LOOKS.register("left_out")
@dataclass(frozen=True)
class LeftOutLook:
    """At every few looks, further forwards in each of which a part of the tokens is masked, so that each is hidden once.

    What a token's probability is then is what PRISM's head learns to say without them, exactly so with as many parts as
    tokens. With few parts it is what a perturbed context leaves of it, as CoRe asks (arXiv 2602.04096). Tokens that stand side
    by side are in different parts. The feature `context_confidence` reads it; at the looks between, every token has 1.

    Each part waits for the device once, since rows have different numbers of tokens.

    Args:
        num_parts: Parts, and so forwards beside the look's own, >= 1.
        every: Looks of a block from one check to the next, >= 1.
    """

    num_parts: int = 4
    every: int = 1
    gives: ClassVar[frozenset[str]] = frozenset({"left_out"})
    tells_block: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_int(self, "num_parts", minimum=1)
        require_int(self, "every", minimum=1)

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        looks = looks_of_block(state, memory)
        due = looks % self.every == 0
        seen, _ = PlainLook()(model, state, want, {})
        left_out, forwards = self._left_out(model, state, want, due)
        seen = replace(seen, num_forwards=1 + forwards, left_out=left_out)
        return seen, {"looks": looks, "block": state.block}

    def _left_out(self, model: HeadedBackbone, state: State, want: Want, due: Tensor) -> tuple[Logits | None, Tensor]:
        """Logits of the tokens of rows that are due, each from a forward in which it was masked; and those forwards."""
        hidden = want.visible_tokens & due.unsqueeze(-1)
        part_of = (hidden.cumsum(-1) - 1) % self.num_parts
        rows, index, forwards = [], [], torch.zeros_like(state.block)
        mask = told(model, state, want)
        for part in range(self.num_parts):
            here = hidden & (part_of == part)
            counts = here.sum(-1)
            asked = counts.nonzero().squeeze(-1)
            if len(asked) == 0:
                continue
            mine = here[asked]
            output = model(
                state.tokens[asked].masked_fill(mine, model.mask_token_id),
                None if mask is None else mask[asked],
                logits_at=true_places(mine, int(counts.sum())),
                with_quality=False,
            )
            rows.append(output.logits)
            index.append(true_places(here, len(output.logits)))
            forwards = forwards.index_add(0, asked, torch.ones_like(asked))
        if not rows:
            return None, forwards
        return Logits(torch.cat(rows), torch.cat(index)), forwards
