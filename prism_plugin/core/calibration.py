"""How good a predicted probability of being right is: ranking (AUROC), calibration (ECE), and both at once (Brier)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Scores = Float[Tensor, " count"]
Correct = Bool[Tensor, " count"]


def auroc(scores: Scores, correct: Correct, groups: Int[Tensor, " count"] | None = None) -> float:
    """Probability that a right token scores above a wrong one, ties counted half (Mann-Whitney's U over its largest value).

    Args:
        scores: Any numbers, higher for "right"; NaN is not allowed.
        correct: Which tokens are right.
        groups: Compare only tokens with equal group number, such as those of one state, and average over the groups that
            hold both a right and a wrong token. None compares all with all.

    Returns:
        In [0, 1]; NaN when no right token can be compared with a wrong one.
    """
    if not scores.numel():
        return float("nan")
    groups = torch.zeros_like(correct, dtype=torch.long) if groups is None else groups.unique(return_inverse=True)[1]
    levels, level = scores.unique(return_inverse=True)
    _, place, count = (groups * levels.numel() + level).unique(return_inverse=True, return_counts=True)
    size = torch.bincount(groups).double()
    # Mean rank of a set of ties within its group, from 1: those before it in the group, plus half of its own and a half.
    before = count.cumsum(0).double() - count - (size.cumsum(0) - size)[groups[_first_of(place, count.numel())]]
    rank = (before + (count + 1) / 2)[place]
    right = torch.zeros_like(size).index_add(0, groups, correct.double())
    wrong = size - right
    rank_sum = torch.zeros_like(size).index_add(0, groups, rank * correct)
    per_group = (rank_sum - right * (right + 1) / 2) / (right * wrong)
    both = (right > 0) & (wrong > 0)
    return per_group[both].mean().item()


def ece(probabilities: Scores, correct: Correct, num_bins: int = 15) -> float:
    """Expected calibration error: mean distance of predicted and observed share of right tokens, over bins of equal width.

    Guo et al. 2017 (arXiv 1706.04599, equation 3), for the probability of being right itself. Bins are (low, high], the
    first one closed.

    Args:
        probabilities: In [0, 1].
        correct: Which tokens are right.
        num_bins: >= 1.

    Returns:
        In [0, 1]; NaN without tokens.
    """
    if not probabilities.numel():
        return float("nan")
    bins = ((probabilities.double() * num_bins).ceil().long() - 1).clamp(0, num_bins - 1)
    gap = torch.zeros(num_bins, dtype=torch.float64, device=bins.device)
    gap = gap.index_add(0, bins, correct.double() - probabilities.double())
    return (gap.abs().sum() / probabilities.numel()).item()


def brier(probabilities: Scores, correct: Correct) -> float:
    """Mean squared distance of the probability from 1 where the token is right and from 0 where it is not; NaN without any."""
    return (probabilities.double() - correct.double()).square().mean().item()


def _first_of(place: Tensor, num_places: int) -> Tensor:
    """Index of one element of each place."""
    indices = torch.arange(place.numel(), device=place.device)
    return torch.zeros(num_places, dtype=torch.long, device=place.device).scatter(0, place, indices)
