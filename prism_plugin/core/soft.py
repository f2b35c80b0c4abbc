"""Soft tokens: inputs between the mask and what a model would write there, as mixtures of a few token embeddings."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_plugin.core.categorical import chunk_slices
from prism_plugin.types import FlatIndex, HiddenStates, Rows, TokenIds


@dataclass(frozen=True)
class SoftTokens:
    """What stands at some positions of a canvas in place of their token's embedding.

    Attributes:
        index: Flat positions, int64, [rows].
        ids: Tokens whose embeddings are mixed, [rows, parts].
        weights: How much of each, >= 0 and 1 in all for each row, [rows, parts].
    """

    index: FlatIndex
    ids: Tensor
    weights: Tensor


def soft_tokens(rows: Rows, index: FlatIndex, *, mask_token_id: int, top_k: int, mix: Tensor) -> SoftTokens:
    """Mix the mask with the most probable tokens, more of them where the model is surer.

    At each position (1 - a) of the mask and a of the `top_k` most probable tokens, by their probabilities, with
    a = mix * (1 - H / log V), where H is the entropy over the V tokens. Soft-Masked Diffusion (arXiv 2510.17206) learns three
    numbers that make a of the entropy; Mixture of Inputs (arXiv 2505.14827) weighs by it as well.

    Args:
        rows: Logits of the positions, without the mask token's column or with it: it is never among the tokens that are mixed.
        index: Their flat positions.
        mask_token_id: Id of the mask token.
        top_k: Tokens to mix, >= 1.
        mix: Most of the mixture that is not the mask, in [0, 1], [rows].
    """
    ids, weights = [], []
    for here in chunk_slices(rows):
        chunk = rows[here].float()
        if mask_token_id < chunk.shape[-1]:
            column = torch.arange(chunk.shape[-1], device=chunk.device) == mask_token_id
            chunk = chunk.masked_fill(column, -torch.inf)
        probability = chunk.softmax(-1)
        entropy = -(probability * probability.clamp(min=torch.finfo(torch.float32).tiny).log()).sum(-1)
        sureness = 1 - entropy / math.log(chunk.shape[-1])
        best, best_ids = probability.topk(min(top_k, chunk.shape[-1]), dim=-1)
        soft = (mix[here] * sureness.clamp(min=0)).unsqueeze(-1)
        ids.append(torch.cat((torch.full_like(best_ids[:, :1], mask_token_id), best_ids), dim=-1))
        weights.append(torch.cat((1 - soft, soft * best / best.sum(-1, keepdim=True)), dim=-1))
    return SoftTokens(index, torch.cat(ids), torch.cat(weights))


def embedded(embed: Callable[[Tensor], Tensor], input_ids: TokenIds, soft: SoftTokens) -> HiddenStates:
    """The input embeddings of tokens, with mixtures at the positions of `soft`, [batch, length, hidden].

    Args:
        embed: The backbone's table of token embeddings.
        input_ids: Tokens.
        soft: Mixtures, at flat positions of them.
    """
    plain = embed(input_ids)
    mixed = (embed(soft.ids.to(input_ids.device)) * soft.weights.unsqueeze(-1).to(plain)).sum(1)
    return plain.flatten(0, 1).index_copy(0, soft.index.to(plain.device), mixed).view_as(plain)
