"""Judged tokens -> figures, a scaling of the head, and a threshold; what is fitted on some rows is measured on the others."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prism_plugin.core.calibration import (
    auroc,
    brier,
    doubted_precision_recall,
    ece,
    fit_scaling,
    reliability,
    threshold_for_precision,
)
from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.quality import PROBABILITIES, JudgedTokens

NUM_BINS = 15
_MASKED_GROUPS = 5
_STEP_GROUPS = 8
# Beyond it, every token is given nearly the same quality: the logits do not order them.
_HIGHEST_TEMPERATURE = 100.0
# A second number has to lower the cross-entropy of the rows that were held out by 1 %.
_WORTH_A_BIAS = 0.99


@dataclass(frozen=True)
class ScoreFigures:
    """How good one score is. NaN where it cannot be measured.

    Attributes:
        auroc_within: Probability that a right token scores above a wrong one of the same state, mean over the states that hold
            both: what a rule needs that chooses among the tokens of one state.
        auroc: The same over all tokens of all states: what a threshold needs.
        ece: Expected calibration error; NaN for what is no probability (`PROBABILITIES`).
        brier: Mean squared error; NaN for what is no probability.
    """

    auroc_within: float
    auroc: float
    ece: float
    brier: float


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: its edges, tokens, right ones among them, and the sum of the scores."""

    low: float
    high: float
    tokens: int
    right: int
    predicted: float


@dataclass(frozen=True)
class Group:
    """Figures of some states: with a share of masks from `low` to below `high`, or seen in looks `low` to `high`, from 1."""

    low: float
    high: float
    tokens: int
    mixed_states: int
    right: float
    scores: dict[str, ScoreFigures]


@dataclass(frozen=True)
class QualityFigures:
    """All figures of one kind of state.

    Attributes:
        tokens: Judged tokens.
        states: Looks at rows that they were seen in.
        mixed_states: Those with a right and a wrong token, over which `auroc_within` is a mean.
        right: Share of right tokens: what somebody who knows nothing says of each.
        scores: By score.
        reliability: Bins of each score that is a probability.
        by_masked: By the share of masks in the state.
        by_step: By the number of the look; None on drafts.
    """

    tokens: int
    states: int
    mixed_states: int
    right: float
    scores: dict[str, ScoreFigures]
    reliability: dict[str, list[Bin]]
    by_masked: list[Group]
    by_step: list[Group] | None


def measure(judged: JudgedTokens) -> QualityFigures:
    """Compute all figures of judged tokens, of which there must be some."""
    return QualityFigures(
        tokens=judged.correct.numel(),
        states=judged.state.unique().numel(),
        mixed_states=_mixed_states(judged),
        right=judged.correct.double().mean().item(),
        scores=_scores(judged),
        reliability={name: _bins(score, judged.correct) for name, score in judged.scores.items() if name in PROBABILITIES},
        by_masked=_by_masked(judged),
        by_step=None if judged.step is None else _by_step(judged, judged.step),
    )


def _scores(judged: JudgedTokens) -> dict[str, ScoreFigures]:
    return {
        name: ScoreFigures(
            auroc_within=auroc(score, judged.correct, judged.state),
            auroc=auroc(score, judged.correct),
            ece=ece(score, judged.correct, NUM_BINS) if name in PROBABILITIES else math.nan,
            brier=brier(score, judged.correct) if name in PROBABILITIES else math.nan,
        )
        for name, score in judged.scores.items()
    }


def _mixed_states(judged: JudgedTokens) -> int:
    state = judged.state.unique(return_inverse=True)[1]
    right = torch.bincount(state, weights=judged.correct.double())
    return int(((right > 0) & (right < torch.bincount(state))).sum())


def _bins(score: Tensor, correct: Tensor) -> list[Bin]:
    bins = reliability(score, correct, NUM_BINS)
    numbers = zip(bins.tokens.tolist(), bins.right.tolist(), bins.predicted.tolist(), strict=True)
    return [
        Bin(index / NUM_BINS, (index + 1) / NUM_BINS, round(tokens), round(right), predicted)
        for index, (tokens, right, predicted) in enumerate(numbers)
    ]


def _by_masked(judged: JudgedTokens) -> list[Group]:
    group = (judged.masked_share * _MASKED_GROUPS).long().clamp(max=_MASKED_GROUPS - 1)
    edges = [(index / _MASKED_GROUPS, (index + 1) / _MASKED_GROUPS) for index in range(_MASKED_GROUPS)]
    return _groups(judged, group, edges)


def _by_step(judged: JudgedTokens, step: Tensor) -> list[Group]:
    last = int(step.max()) + 1
    width = -(-last // _STEP_GROUPS)
    edges: list[tuple[float, float]] = [(start + 1, min(start + width, last)) for start in range(0, last, width)]
    return _groups(judged, step // width, edges)


def _groups(judged: JudgedTokens, group: Tensor, edges: list[tuple[float, float]]) -> list[Group]:
    found = []
    for index, (low, high) in enumerate(edges):
        part = judged.where(group == index)
        if part.correct.numel():
            right = part.correct.double().mean().item()
            found.append(Group(low, high, part.correct.numel(), _mixed_states(part), right, _scores(part)))
    return found


@dataclass(frozen=True)
class Calibration:
    """How well probabilities fit: cross-entropy in nats per token, expected calibration error, and Brier score."""

    cross_entropy: float
    ece: float
    brier: float


@dataclass(frozen=True)
class FittedScaling:
    """A scaling of the head's logits, to be applied to what the head says now.

    Attributes:
        temperature: Divides the logits.
        bias: Added then; 0 unless it is worth it on the rows that were held out.
        before: Fit of the head as it is, on the rows that were held out.
        after: The same of the scaled head.
    """

    temperature: float
    bias: float
    before: Calibration
    after: Calibration

    def __call__(self, judged: JudgedTokens) -> JudgedTokens:
        """Judged tokens with the quality that the scaled head gives them."""
        quality = (judged.quality_logits / self.temperature + self.bias).sigmoid().float()
        return replace(judged, scores={**judged.scores, "quality": quality})


def fit_head_scaling(judged: JudgedTokens) -> FittedScaling:
    """Fit a temperature, and a bias if it pays, on every second row, and measure it on the others.

    Raises:
        ConfigurationError: If there are fewer than two rows, or the quality of the first half cannot be scaled.
    """
    fitted_on, held_out = _halves(judged, "Fitting a temperature")
    best: FittedScaling | None = None
    order = auroc(fitted_on.scores["quality"], fitted_on.correct)
    for with_bias in () if order <= 0.5 or order == 1 else (False, True):
        temperature, bias = fit_scaling(fitted_on.quality_logits, fitted_on.correct, with_bias=with_bias)
        if temperature > _HIGHEST_TEMPERATURE:
            continue
        after = _calibration(held_out.quality_logits / temperature + bias, held_out.correct)
        if best is None or after.cross_entropy < _WORTH_A_BIAS * best.after.cross_entropy:
            before = _calibration(held_out.quality_logits, held_out.correct)
            best = FittedScaling(temperature=temperature, bias=bias, before=before, after=after)
    if best is None:
        raise ConfigurationError(
            f"A quality can be scaled that tells right from wrong tokens better than chance and not always, but its AUROC is "
            f"{order:.3f} here; give more rows, or train the head."
        )
    return best


@dataclass(frozen=True)
class ChosenThreshold:
    """A quality below which tokens are wrong often enough.

    Attributes:
        wanted_precision: Share of wrong tokens among those below that was asked for.
        threshold: The highest that had it on every second row; None if none had.
        precision: What it has on the other rows; NaN if nothing is below it there.
        recall: Share of all their wrong tokens that is below it.
        doubted: Share of all their tokens that is below it.
    """

    wanted_precision: float
    threshold: float | None
    precision: float
    recall: float
    doubted: float


def choose_threshold(judged: JudgedTokens, precision: float) -> ChosenThreshold:
    """Choose a threshold on every second row, and measure it on the others.

    Args:
        judged: Tokens of a sampler's states.
        precision: Wanted share of wrong tokens among those below the threshold, in (0, 1].

    Raises:
        ConfigurationError: If the precision is out of range, or there are fewer than two rows.
    """
    if not 0 < precision <= 1:
        raise ConfigurationError(f"`precision` must be a share in (0, 1], got {precision}.")
    chosen_on, held_out = _halves(judged, "Choosing a threshold")
    threshold = threshold_for_precision(chosen_on.scores["quality"], chosen_on.correct, precision)
    if threshold is None:
        return ChosenThreshold(precision, None, math.nan, math.nan, math.nan)
    quality = held_out.scores["quality"]
    reached, recall = doubted_precision_recall(quality, held_out.correct, threshold)
    return ChosenThreshold(precision, threshold, reached, recall, (quality < threshold).double().mean().item())


def _halves(judged: JudgedTokens, what: str) -> tuple[JudgedTokens, JudgedTokens]:
    place = judged.row.unique(return_inverse=True)[1]  # ids of rows may be any numbers
    halves = judged.where(place % 2 == 0), judged.where(place % 2 == 1)
    if not all(half.correct.numel() for half in halves):
        raise ConfigurationError(
            f"{what} needs at least two rows with judged tokens, one half to fit and one to measure, found "
            f"{judged.row.unique().numel()}; give more rows."
        )
    return halves


def _calibration(logits: Tensor, correct: Tensor) -> Calibration:
    probabilities = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, correct.double()).item()
    return Calibration(cross_entropy, ece(probabilities, correct, NUM_BINS), brier(probabilities, correct))


def to_plain(value: Any) -> Any:
    """Write figures as plain values for JSON, which has no NaN: None stands for it."""
    if hasattr(value, "__dataclass_fields__"):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: to_plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [to_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
