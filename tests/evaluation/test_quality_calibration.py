"""Figures of judged tokens, a scaling and a threshold: measured on rows that they were not fitted on."""

import json
import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from prism_plugin.core.calibration import auroc, brier, ece
from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.calibration import choose_threshold, fit_head_scaling, measure, to_plain
from prism_plugin.evaluation.quality import JudgedTokens


def judged_tokens(count=4000, temperature=1.0, bias=0.0, num_rows=20, with_steps=True):
    """Tokens that are right with a known probability, and a head that says it too loudly or too low."""
    generator = torch.Generator().manual_seed(count)
    logits = 1.5 * torch.randn(count, generator=generator) + 1
    step = torch.randint(0, 20, (count,), generator=generator)
    row = torch.randint(0, num_rows, (count,), generator=generator)
    quality = ((logits - bias) * temperature).sigmoid()
    return JudgedTokens(
        scores={"quality": quality, "commit_confidence": torch.rand(count, generator=generator)},
        correct=torch.rand(count, generator=generator) < logits.sigmoid(),
        row=row,
        state=row * 20 + step,
        masked_share=1 - (step + 1) / 21,
        step=step if with_steps else None,
    )


def test_figures_of_all_and_of_groups():
    judged = judged_tokens()
    figures = measure(judged)
    quality = judged.scores["quality"]
    assert (figures.tokens, figures.states) == (4000, judged.state.unique().numel())
    assert figures.right == pytest.approx(judged.correct.double().mean().item())
    assert figures.scores["quality"].auroc == pytest.approx(roc_auc_score(judged.correct, quality))
    assert figures.scores["quality"].auroc_within == auroc(quality, judged.correct, judged.state)
    assert figures.scores["quality"].ece == ece(quality, judged.correct)
    assert figures.scores["commit_confidence"].brier == brier(judged.scores["commit_confidence"], judged.correct)
    groups = [judged.correct[judged.state == state] for state in judged.state.unique()]
    assert figures.mixed_states == sum(bool(0 < group.sum() < len(group)) for group in groups)
    bins = figures.reliability["quality"]
    assert sum(one.tokens for one in bins) == 4000
    assert sum(abs(one.right - one.predicted) for one in bins) / 4000 == pytest.approx(figures.scores["quality"].ece)


def test_groups_by_masks_and_by_look():
    judged = judged_tokens()
    figures = measure(judged)
    assert [(group.low, group.high) for group in figures.by_masked] == [(0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1)]
    assert [(group.low, group.high) for group in figures.by_step] == [
        (1, 3), (4, 6), (7, 9), (10, 12), (13, 15), (16, 18), (19, 20)
    ]  # fmt: skip
    for groups, value in ((figures.by_masked, judged.masked_share), (figures.by_step, judged.step + 1)):
        assert sum(group.tokens for group in groups) == 4000
        closed = groups is figures.by_step
        for group in groups:
            inside = (value >= group.low) & ((value <= group.high) if closed else (value < group.high))
            assert group.tokens == inside.sum()
            assert group.scores["quality"].ece == ece(judged.scores["quality"][inside], judged.correct[inside])
    assert measure(judged_tokens(with_steps=False)).by_step is None


def test_what_is_no_probability_is_ranked_and_not_calibrated():
    judged = judged_tokens()
    with_age = replace(judged, scores={**judged.scores, "age": judged.scores["quality"]})
    figures = measure(with_age)
    for scores in (figures.scores, *(group.scores for group in (*figures.by_masked, *figures.by_step))):
        assert math.isnan(scores["age"].ece)
        assert math.isnan(scores["age"].brier)
        assert scores["age"].auroc_within == scores["quality"].auroc_within
        assert scores["age"].auroc == scores["quality"].auroc
    assert to_plain(figures)["scores"]["age"]["ece"] is to_plain(figures)["scores"]["age"]["brier"] is None
    assert set(figures.reliability) == set(judged.scores)


def test_json_has_no_nan():
    judged = judged_tokens(40)
    only_right = measure(judged.where(judged.correct))
    assert math.isnan(only_right.scores["quality"].auroc)
    plain = to_plain(only_right)
    assert plain["scores"]["quality"]["auroc"] is None
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize(("temperature", "bias"), [(4.0, 0.0), (0.3, 0.0), (2.0, 1.5)])
def test_a_miscalibrated_head_fits_the_rows_that_were_held_out(temperature, bias):
    judged = judged_tokens(40_000, temperature, bias)
    fitted = fit_head_scaling(judged)
    assert fitted.temperature == pytest.approx(temperature, rel=0.05)
    assert fitted.bias == pytest.approx(bias, abs=0.05)
    assert fitted.after.ece < 0.02 < 0.05 < fitted.before.ece
    assert fitted.after.brier < fitted.before.brier
    assert fitted.after.cross_entropy < fitted.before.cross_entropy
    before, after = measure(judged).scores["quality"], measure(fitted(judged)).scores["quality"]
    assert after.auroc == pytest.approx(before.auroc, abs=1e-4)
    assert after.auroc_within == pytest.approx(before.auroc_within, abs=1e-3)


def test_the_odd_rows_are_not_fitted_on():
    judged = judged_tokens()
    odd = judged.row % 2 == 1
    turned = judged.where(torch.ones_like(odd))
    turned.correct[odd] = ~turned.correct[odd]
    one, other = fit_head_scaling(judged), fit_head_scaling(turned)
    assert one.before != other.before
    candidates = {(one.temperature, one.bias), (other.temperature, other.bias)}
    assert all(temperature == pytest.approx(1, abs=0.15) for temperature, _ in candidates)


def test_halves_do_not_depend_on_how_rows_are_numbered():
    judged = judged_tokens()
    assert fit_head_scaling(replace(judged, row=2 * judged.row + 6)) == fit_head_scaling(judged)


def test_the_threshold_keeps_its_precision_on_rows_that_it_has_not_seen():
    judged = judged_tokens(40_000)
    chosen = choose_threshold(judged, 0.7)
    odd = judged.where(judged.row % 2 == 1)
    doubted = odd.scores["quality"] < chosen.threshold
    assert chosen.precision == pytest.approx((~odd.correct[doubted]).double().mean().item())
    assert chosen.precision == pytest.approx(0.7, abs=0.03)
    assert chosen.recall == pytest.approx((doubted & ~odd.correct).sum().item() / (~odd.correct).sum().item())
    assert chosen.doubted == pytest.approx(doubted.double().mean().item())
    assert choose_threshold(judged, 0.9).threshold < chosen.threshold
    none = choose_threshold(judged.where(judged.correct), 0.9)
    assert (none.threshold, math.isnan(none.precision)) == (None, True)


def test_what_cannot_be_fitted_is_refused_in_one_sentence():
    one_row = judged_tokens(100, num_rows=1)
    with pytest.raises(ConfigurationError, match="Fitting a temperature needs at least two rows with judged tokens"):
        fit_head_scaling(one_row)
    with pytest.raises(ConfigurationError, match="Choosing a threshold needs at least two rows with judged tokens"):
        choose_threshold(one_row, 0.5)
    with pytest.raises(ConfigurationError, match=r"`precision` must be a share in \(0, 1\], got 0"):
        choose_threshold(judged_tokens(), 0)
    judged = judged_tokens()
    for of_right, figure in ((0.9, r"1\.000"), (0.1, r"0\.000"), (0.5, r"0\.500")):
        judged.scores["quality"][:] = torch.where(judged.correct, of_right, 1 - of_right)
        with pytest.raises(ConfigurationError, match=f"better than chance and not always, but its AUROC is {figure} here"):
            fit_head_scaling(judged)
    with pytest.raises(ConfigurationError, match="needs right and wrong tokens to fit on, found"):
        fit_head_scaling(judged.where(judged.correct))
