"""Sampling and training as the field writes them: full logits, a softmax over all of them, a loop over the rows.

Transcribed from the papers' algorithms (LLaDA, arXiv 2502.09992; PRISM, arXiv 2510.01384) in the way in which their public
code computes them, on our order of a step: take back first, then reveal. Compared with `tests/reference`, and with ours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer


@torch.no_grad()
def sample(
    backbone: nn.Module,
    head: nn.Module,
    tokens: Tensor,
    blocks: Sequence[Tensor],
    *,
    mask_token_id: int,
    num_steps: int,
    num_remask: int,
) -> Tensor:
    """Fill the masks at temperature 0, surest first, and take back the lowest quality.

    Args:
        backbone: A transformers model with its LM head.
        head: Hidden states -> quality logits.
        tokens: [batch, length], masks where something is to be filled.
        blocks: Positions of each block, bool masks [batch, length], equally many in each row.
        mask_token_id: Id of the mask token.
        num_steps: Forward passes, a multiple of the number of blocks.
        num_remask: Positions taken back per step and row at most.
    """
    tokens = tokens.clone()
    steps = num_steps // len(blocks)
    for block in blocks:
        total = int(block[0].sum())
        for step in range(steps):
            output = backbone(tokens, output_hidden_states=True)
            quality = head(output.hidden_states[-1]).sigmoid()
            logits = output.logits
            logits[:, :, mask_token_id] = float("-inf")
            candidates = torch.argmax(logits, dim=-1)
            probabilities = F.softmax(logits, dim=-1)
            confidence = probabilities.gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
            masked, revealed = block & (tokens == mask_token_id), block & (tokens != mask_token_id)
            confidence = torch.where(masked, confidence, float("-inf"))
            doubt = torch.where(revealed, -quality, float("-inf"))
            target = -(-(step + 1) * total // steps)
            for row in range(tokens.shape[0]):
                count = int(revealed[row].sum())
                take_back = min(num_remask, count, total - target)
                condemned = doubt[row].topk(take_back).indices
                chosen = confidence[row].topk(target - count + take_back).indices
                tokens[row, chosen] = candidates[row, chosen]
                tokens[row, condemned] = mask_token_id
    return tokens


def training_loss(
    backbone: nn.Module,
    head: nn.Module,
    clean_ids: Tensor,
    noised_ids: Tensor,
    *,
    mask_token_id: int,
    t: float,
    num_drafted: int,
    diffusion_weight: float,
) -> Tensor:
    """PRISM's loss of a batch in which every token may be masked: two looks, each with all logits, and one graph for both.

    Args:
        backbone: A transformers model with its LM head.
        head: Hidden states -> quality logits.
        clean_ids: [batch, length].
        noised_ids: The same with masks; at least `num_drafted` in each row.
        mask_token_id: Id of the mask token.
        t: Masking probability.
        num_drafted: Positions filled per row, the surest of the masked ones.
        diffusion_weight: The paper's lambda.
    """
    batch, length = clean_ids.shape
    masked = noised_ids == mask_token_id
    logits = backbone(noised_ids, output_hidden_states=True).logits
    with torch.no_grad():
        candidates = torch.argmax(logits, dim=-1)
        confidence = F.softmax(logits, dim=-1).gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
        chosen = torch.where(masked, confidence, float("-inf")).topk(num_drafted, dim=-1).indices
        drafted = torch.zeros_like(masked).scatter(-1, chosen, True)
        draft_ids = torch.where(drafted, candidates, noised_ids)
    of_masks = F.cross_entropy(logits[masked], clean_ids[masked], reduction="none") / t
    hidden_states = backbone(draft_ids, output_hidden_states=True).hidden_states[-1]
    quality_logits = head(hidden_states)[drafted]
    right = (draft_ids == clean_ids)[drafted].float()
    quality = F.binary_cross_entropy_with_logits(quality_logits, right, reduction="sum") / (batch * num_drafted)
    return quality + diffusion_weight * of_masks.sum() / (batch * length)


class ReplaceCache(Cache):
    """A cache of transformers that a decoder writes into at given columns: the least that a window of a canvas can cost."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_ReplaceLayer() for _ in range(num_layers)])

    def at(self, columns: Tensor | None) -> "ReplaceCache":
        """The cache, where the next call computes these columns of every row; None: all, and it begins anew."""
        for layer in self.layers:
            layer.columns = columns
        return self


class _ReplaceLayer(DynamicLayer):
    columns: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.columns is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys[:, :, self.columns], self.values[:, :, self.columns] = key_states, value_states
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.columns is None else self.keys.shape[-2]), 0

    def get_seq_length(self) -> int:
        return 0 if self.columns is None else super().get_seq_length()
