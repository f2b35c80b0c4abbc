import math

import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from prism_plugin.core.calibration import auroc, brier, ece


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
