"""Scores and a budget per row -> a boolean mask. Every rule that ranks positions ranks them here."""

import torch

from prism_plugin.types import AnyMask, FlatIndex, PerRow, PerToken, TokenMask


def select_top(scores: PerToken, eligible: TokenMask, budget: PerRow) -> TokenMask:
    """Mark the `budget` highest-scoring eligible positions of each row.

    Ties go to the leftmost position. A row with fewer eligible positions than its budget gets all of them.

    Args:
        scores: Any floats, infinities included; only their order within a row matters.
        eligible: Positions that may be chosen.
        budget: Positions to choose per row, >= 0.

    Returns:
        A mask that is a subset of `eligible`, with `min(budget, eligible.sum(-1))` true entries per row.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    eligible_in_order = eligible.gather(-1, order)
    # counting eligible positions along the order, rather than ranking with -inf elsewhere, keeps the count exact when an
    # eligible score is itself -inf
    chosen_in_order = eligible_in_order & (eligible_in_order.cumsum(-1) <= budget.unsqueeze(-1))
    return torch.zeros_like(eligible).scatter(-1, order, chosen_in_order)


def select_above(scores: PerToken, eligible: TokenMask, threshold: float) -> TokenMask:
    """Mark the eligible positions whose score is at least `threshold`."""
    return eligible & (scores >= threshold)


def at_most(mask: TokenMask, scores: PerToken, budget: PerRow) -> TokenMask:
    """Keep the `budget` highest-scoring positions of a mask; a row within its budget stays as it is."""
    return select_top(scores, mask, budget)


def true_places(mask: AnyMask, count: int) -> FlatIndex:
    """Where a mask is true, as flat positions in order; unlike `nonzero`, it does not wait for the device.

    Args:
        mask: Of any shape.
        count: How many of its entries are true; known to the caller.
    """
    flat = mask.flatten()
    numbers = torch.arange(flat.shape[0], device=mask.device)
    place = torch.where(flat, flat.cumsum(0) - 1, count)  # what is false goes to one place past the end
    return torch.zeros(count + 1, dtype=torch.int64, device=mask.device).scatter_(0, place, numbers)[:count]
