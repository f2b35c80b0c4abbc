import math
from itertools import pairwise

import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

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


def random_case(count, levels):
    generator = torch.Generator().manual_seed(count)
    scores = (torch.rand(count, generator=generator) * levels).round() / levels  # few levels: many ties
    correct = torch.rand(count, generator=generator) < scores
    return scores, correct, torch.randint(0, count // 8 + 1, (count,), generator=generator)


@pytest.mark.parametrize(("count", "levels"), [(40, 3), (500, 20), (333, 10_000)])
def test_figures_agree_with_scikit_learn(count, levels):
    scores, correct, groups = random_case(count, levels)
    assert auroc(scores, correct) == pytest.approx(roc_auc_score(correct, scores))
    assert brier(scores, correct) == pytest.approx(brier_score_loss(correct, scores))
    both = [group for group in groups.unique() if 0 < correct[groups == group].sum() < (groups == group).sum()]
    expected = [roc_auc_score(correct[groups == group], scores[groups == group]) for group in both]
    assert auroc(scores, correct, groups) == pytest.approx(sum(expected) / len(expected))


def test_ece_weights_each_bin_by_its_tokens():
    scores, correct, _ = random_case(333, 10_000)
    observed, predicted = calibration_curve(correct, scores, n_bins=15)
    counts = torch.histc(scores.double(), bins=15, min=0, max=1)
    expected = sum(abs(o - p) * n for o, p, n in zip(observed, predicted, counts[counts > 0].tolist(), strict=True)) / 333
    assert ece(scores, correct) == pytest.approx(expected)
    assert ece(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([False, True, False])) == pytest.approx(1 / 3)


def test_what_cannot_be_measured_is_nan():
    none = torch.zeros(0)
    assert math.isnan(auroc(none, none.bool()))
    assert math.isnan(ece(none, none.bool()))
    assert math.isnan(brier(none, none.bool()))
    assert math.isnan(auroc(torch.rand(4), torch.ones(4, dtype=torch.bool)))
    assert math.isnan(auroc(torch.rand(4), torch.tensor([True, False] * 2), torch.arange(4)))


def test_reliability_is_what_scikit_learn_draws():
    scores, correct, _ = random_case(333, 10_000)
    bins = reliability(scores, correct, 10)
    observed, predicted = calibration_curve(correct, scores, n_bins=10)
    assert (bins.right / bins.tokens).tolist() == pytest.approx(observed.tolist())
    assert (bins.predicted / bins.tokens).tolist() == pytest.approx(predicted.tolist())
    assert bins.tokens.sum() == 333


def known_case(temperature, bias, count=200_000):
    """Tokens that are right with a known probability, and logits that say it too loudly or too low."""
    true_logits = 2 * torch.randn(count, generator=torch.Generator().manual_seed(0))
    correct = torch.rand(count, generator=torch.Generator().manual_seed(1)) < true_logits.sigmoid()
    return (true_logits - bias) * temperature, correct


@pytest.mark.parametrize(("temperature", "bias"), [(3.0, 0.0), (0.4, 0.0), (2.5, -1.2)])
def test_scaling_finds_the_probabilities_that_were_hidden(temperature, bias):
    logits, correct = known_case(temperature, bias)
    found = fit_scaling(logits, correct, with_bias=bool(bias))
    assert found == (pytest.approx(temperature, rel=0.03), pytest.approx(bias, abs=0.03))
    before, after = logits.sigmoid(), (logits / found[0] + found[1]).sigmoid()
    assert ece(before, correct) > 0.05
    assert ece(after, correct) < 0.005
    assert brier(after, correct) < brier(before, correct)
    assert auroc(logits / found[0] + found[1], correct) == pytest.approx(auroc(logits, correct), abs=1e-6)


def test_scaling_is_unpenalised_logistic_regression():
    logits, correct = known_case(2.0, 0.7, count=400)
    reference = LogisticRegression(C=math.inf, tol=1e-10).fit(logits.unsqueeze(-1), correct)
    temperature, bias = fit_scaling(logits, correct, with_bias=True)
    assert (1 / temperature, bias) == (
        pytest.approx(reference.coef_.item(), rel=1e-4),
        pytest.approx(reference.intercept_[0], abs=1e-4),
    )
    with torch.no_grad():  # as inside an evaluation
        assert fit_scaling(logits, correct, with_bias=True) == (temperature, bias)


@pytest.mark.parametrize("correct", [torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)])
def test_scaling_needs_both_kinds_of_token(correct):
    with pytest.raises(ConfigurationError, match=r"needs right and wrong tokens to fit on, found [03] right ones of 3"):
        fit_scaling(torch.randn(3), correct, with_bias=False)


@pytest.mark.parametrize("precision", [0.3, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("levels", [4, 25, 10_000])
def test_the_threshold_is_the_highest_that_keeps_the_precision(precision, levels):
    scores, correct, _ = random_case(120, levels)
    found = threshold_for_precision(scores, correct, precision)
    edges = sorted({*scores.tolist(), 1.0})
    between = [(low + high) / 2 for low, high in pairwise(edges)]
    good = [cut for cut in between if doubted_precision_recall(scores, correct, cut)[0] >= precision]
    assert found == (pytest.approx(max(good)) if good else None)


def test_precision_and_recall_of_doubt_by_hand():
    scores, correct = torch.tensor([0.1, 0.2, 0.3, 0.8, 0.9]), torch.tensor([False, False, True, False, True])
    assert threshold_for_precision(scores, correct, 1.0) == pytest.approx(0.25)
    assert doubted_precision_recall(scores, correct, 0.25) == (1.0, pytest.approx(2 / 3))
    assert threshold_for_precision(scores, correct, 0.7) == pytest.approx(0.85)
    assert threshold_for_precision(scores, torch.ones(5, dtype=torch.bool), 0.1) is None
    assert all(map(math.isnan, doubted_precision_recall(scores, torch.ones(5, dtype=torch.bool), 0.05)))
