"""ReMDM's rules take back at the rates of the paper."""

import pytest
import torch
from core.test_rules import cases, positions
from reference import remasking as reference
from views import changed

from prism_plugin.core.remasking import RemdmConfRemasking
from prism_plugin.core.remdm import RemdmCapRemasking, RemdmRescaleRemasking


def test_remdm_conf_probabilities_match_the_paper():
    for view, _ in cases():
        for scale in (0.5, 1.0, 20.0):
            found = RemdmConfRemasking(scale).probabilities(view)
            for row in range(6):
                expected = reference.remdm_conf_probabilities(
                    view.commit_confidence[row].tolist(),
                    view.revealed[row].tolist(),
                    *(int(value[row]) for value in (view.step, view.num_steps, view.total)),
                    scale,
                )
                assert found[row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_remdm_conf_takes_back_as_often_as_it_says(small_view):
    rule, count = RemdmConfRemasking(scale=2.0), 1000
    grid = (torch.arange(count) + 0.5) / count
    noise = grid.unsqueeze(-1).expand(-1, 8)
    many = changed(small_view, lambda tensor: tensor.repeat_interleave(count, 0), noise=noise)
    frequency = rule(many, torch.full((count,), 8)).float().mean(0)
    assert frequency.tolist() == pytest.approx(rule.probabilities(small_view)[0].tolist(), abs=1e-3)


@pytest.mark.parametrize("rule", [RemdmCapRemasking(0.04), RemdmCapRemasking(0.9), RemdmRescaleRemasking(0.6)], ids=str)
def test_remdm_takes_back_at_the_papers_rate(small_view, rule):
    """sigma_max is (1 - alpha_s) / alpha_t: of 8 positions 4 stand, and 2 are left to reveal after the step."""
    count, granted = 4000, 2
    noise = torch.rand(count, 8, generator=torch.Generator().manual_seed(0))
    many = changed(small_view, lambda tensor: tensor.repeat_interleave(count, 0), noise=noise)
    taken = rule(many, torch.full((count,), granted))
    rate = min(rule.eta, granted / 4) if isinstance(rule, RemdmCapRemasking) else rule.eta * granted / 4
    drawn = (noise < rate) & many.revealed
    within = drawn.sum(-1) <= granted
    assert torch.equal(taken[within], drawn[within])
    assert (taken.sum(-1) == drawn.sum(-1).clamp(max=granted)).all()


def test_remdm_conf_over_budget_keeps_the_least_sure(small_view):
    certain = changed(small_view, noise=torch.zeros(1, 8))
    assert positions(RemdmConfRemasking()(certain, torch.tensor([8]))) == [4, 5, 6, 7]
    assert positions(RemdmConfRemasking()(certain, torch.tensor([2]))) == [4, 7]


def test_remdm_conf_is_still_at_the_first_and_last_step(small_view):
    for step in (0, 3):
        still = changed(small_view, step=torch.tensor([step]), noise=torch.zeros(1, 8))
        assert not RemdmConfRemasking(scale=9.0)(still, torch.tensor([8])).any()
