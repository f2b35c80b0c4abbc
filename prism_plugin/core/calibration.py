"""How good a predicted probability of being right is, how to scale it, and where to draw the line below which to doubt.

Ranking is measured by AUROC, calibration by ECE, both at once by the Brier score.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prism_plugin.errors import ConfigurationError
from prism_plugin.types import Correct, Groups, PerBin, Scores


def auroc(scores: Scores, correct: Correct, groups: Groups | None = None) -> float:
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
    bins = reliability(probabilities, correct, num_bins)
    return ((bins.right - bins.predicted).abs().sum() / probabilities.numel()).item()


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram in numbers, [bins] each, float64: tokens, right tokens, and the sum of what was predicted."""

    tokens: PerBin
    right: PerBin
    predicted: PerBin


def reliability(probabilities: Scores, correct: Correct, num_bins: int = 15) -> Reliability:
    """Sort tokens by predicted probability into bins of equal width, (low, high], the first one closed.

    Args:
        probabilities: In [0, 1].
        correct: Which tokens are right.
        num_bins: >= 1.
    """
    bins = ((probabilities.double() * num_bins).ceil().long() - 1).clamp(0, num_bins - 1)
    empty = torch.zeros(num_bins, dtype=torch.float64, device=bins.device)
    of_each = (torch.ones_like(probabilities), correct, probabilities)
    return Reliability(*(empty.index_add(0, bins, values.double()) for values in of_each))


def brier(probabilities: Scores, correct: Correct) -> float:
    """Mean squared distance of the probability from 1 where the token is right and from 0 where it is not; NaN without any."""
    return (probabilities.double() - correct.double()).square().mean().item()


def fit_scaling(logits: Scores, correct: Correct, *, with_bias: bool) -> tuple[float, float]:
    """Find the scaling of logits, `logits / temperature + bias`, under which right and wrong tokens are the least surprising.

    Minimises the binary cross-entropy: temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2), or Platt's
    scaling with a bias. No order of tokens changes, so no AUROC does.

    Args:
        logits: Finite, higher for "right".
        correct: Which tokens are right.
        with_bias: Fit the bias too; otherwise it is 0.

    Returns:
        Temperature, > 0, and bias. The temperature goes to 0 where the logits separate right from wrong, and to infinity
        where they order them worse than chance.

    Raises:
        ConfigurationError: If all tokens are right, or all wrong, or there is none.
    """
    if not 0 < correct.sum() < correct.numel():
        raise ConfigurationError(
            f"Scaling needs right and wrong tokens to fit on, found {int(correct.sum())} right ones of {correct.numel()}; give "
            "more rows."
        )
    logits, target = logits.double(), correct.double()
    free = torch.zeros(1 + with_bias, dtype=torch.float64, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def cross_entropy() -> Tensor:
        optimizer.zero_grad()
        scaled = logits * free[0].neg().exp() + (free[1] if with_bias else 0.0)
        loss = F.binary_cross_entropy_with_logits(scaled, target)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(cross_entropy)
    return free[0].exp().item(), free[1].item() if with_bias else 0.0


def threshold_for_precision(probabilities: Scores, correct: Correct, precision: float) -> float | None:
    """Find the highest threshold below which at least a wanted share of the tokens is wrong.

    Args:
        probabilities: In [0, 1].
        correct: Which tokens are right.
        precision: Share of wrong tokens among those below the threshold, in (0, 1].

    Returns:
        In (0, 1], half-way between two of the probabilities; None where no threshold has so many wrong tokens below it.
    """
    order = probabilities.argsort()
    ascending = probabilities[order].double()
    share_wrong = (~correct[order]).double().cumsum(0) / torch.arange(1, len(order) + 1, device=order.device)
    above = torch.cat((ascending[1:], ascending.new_ones(1)))
    fits = ((share_wrong >= precision) & (above > ascending)).nonzero()
    if not fits.numel():
        return None
    last = fits[-1, 0]
    return ((ascending[last] + above[last]) / 2).item()


def doubted_precision_recall(probabilities: Scores, correct: Correct, threshold: float) -> tuple[float, float]:
    """Give the share of wrong tokens among those below a threshold, and the share of all wrong tokens that is below it.

    NaN where nothing is below it, and where nothing is wrong.
    """
    doubted = probabilities < threshold
    caught = (doubted & ~correct).sum().double()
    return (caught / doubted.sum()).item(), (caught / (~correct).sum()).item()


def _first_of(place: Tensor, num_places: int) -> Tensor:
    """Index of one element of each place."""
    indices = torch.arange(place.numel(), device=place.device)
    return torch.zeros(num_places, dtype=torch.long, device=place.device).scatter(0, place, indices)
