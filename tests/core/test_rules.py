"""Invariants of every registered unmasking and remasking rule, and what each one prefers."""

from dataclasses import replace

import pytest
import torch
from reference import remasking as reference
from views import FEATURES, changed, step_view, tensors_of

from prism_plugin.core.remasking import (
    REMASKING,
    CommitConfidenceRemasking,
    NeverRemasking,
    QualityRemasking,
    QualityThresholdRemasking,
    RandomRemasking,
    RedraftRemasking,
    RemdmConfRemasking,
)
from prism_plugin.core.unmasking import (
    UNMASKING,
    ConfidenceUnmasking,
    EntropyUnmasking,
    MarginUnmasking,
    RandomUnmasking,
    RedraftUnmasking,
    ThresholdUnmasking,
)
from prism_plugin.errors import ConfigurationError

SETTINGS = {
    "threshold": {"threshold": 0.7},
    "quality_threshold": {"threshold": 0.4},
    "remdm_conf": {"scale": 3.0},
    "redraft": {"threshold": 0.7},
}


def rules(registry):
    more = [RedraftRemasking(0.4, score="visible_confidence")] if registry is REMASKING else []
    return more + [registry.from_dict({"name": name, **SETTINGS.get(name, {})}) for name in registry.names()]


def random_view(seed, batch=6, length=23):
    generator = torch.Generator().manual_seed(seed)

    def per_token():
        # sixteenths, so that ties are common
        return torch.randint(16, (batch, length), generator=generator) / 16

    editable = torch.rand(batch, length, generator=generator) < 0.8
    masked = editable & (torch.rand(batch, length, generator=generator) < torch.rand(batch, 1, generator=generator))
    masked[0] = False
    masked[1] = editable[1]
    num_steps = torch.randint(1, 9, (batch,), generator=generator)
    return step_view(
        masked=masked,
        revealed=editable & ~masked,
        editable=editable,
        candidates=torch.randint(50, (batch, length), generator=generator),
        confidence=per_token() * masked,
        commit_confidence=torch.where(editable & ~masked, per_token(), 1.0),
        noise=per_token(),
        step=(torch.rand(batch, generator=generator) * num_steps).long(),
        num_steps=num_steps,
        total=editable.sum(-1),
        times_remasked=torch.randint(3, (batch, 1), generator=generator) * editable,
        entropy=per_token(),
        margin=per_token(),
        quality=per_token(),
        visible_confidence=per_token(),
    )


def cases():
    for seed in range(20):
        view = random_view(seed)
        yield view, torch.randint(0, 12, (6,), generator=torch.Generator().manual_seed(seed))


def copy_of(view):
    return changed(view, torch.Tensor.clone)


def positions(mask):
    return mask[0].nonzero().flatten().tolist()


def test_there_are_rules():
    assert len(rules(UNMASKING)) >= 5
    assert len(rules(REMASKING)) >= 6


@pytest.mark.parametrize("rule", rules(UNMASKING) + rules(REMASKING), ids=str)
def test_rules_are_pure(rule):
    for view, budget in cases():
        view_before, budget_before = copy_of(view), budget.clone()
        first = rule(view, budget)
        assert first.dtype == torch.bool
        assert torch.equal(first, rule(view, budget))
        assert torch.equal(budget, budget_before)
        for name, tensor in tensors_of(view).items():
            assert torch.equal(tensor, tensors_of(view_before)[name]), name


@pytest.mark.parametrize("rule", rules(UNMASKING) + rules(REMASKING), ids=str)
def test_rules_read_only_what_they_declare(rule):
    assert rule.needs <= FEATURES
    for view, budget in cases():
        bare = replace(view, features={name: view.features[name] for name in rule.needs})
        assert torch.equal(rule(bare, budget), rule(view, budget))


@pytest.mark.parametrize("rule", rules(UNMASKING) + rules(REMASKING), ids=str)
def test_rows_do_not_matter_to_each_other(rule):
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    for view, budget in cases():
        moved = changed(view, lambda tensor: tensor[order])
        assert torch.equal(rule(moved, budget[order]), rule(view, budget)[order])


@pytest.mark.parametrize("rule", rules(UNMASKING), ids=str)
def test_revealed_positions_were_masked_and_fill_the_grant(rule):
    for view, budget in cases():
        reveal = rule(view, budget)
        assert not (reveal & ~view.masked).any()
        granted = budget.minimum(view.masked.sum(-1))
        if isinstance(rule, ThresholdUnmasking | RedraftUnmasking):
            assert (reveal.sum(-1) >= granted).all()
        else:
            assert torch.equal(reveal.sum(-1), granted)


@pytest.mark.parametrize("rule", rules(REMASKING), ids=str)
def test_positions_taken_back_were_revealed_and_stay_within_the_budget(rule):
    for view, budget in cases():
        remask = rule(view, budget)
        assert not (remask & ~view.revealed).any()
        assert (remask.sum(-1) <= budget).all()
        if isinstance(rule, QualityRemasking | CommitConfidenceRemasking | RandomRemasking):
            assert torch.equal(remask.sum(-1), budget.minimum(view.revealed.sum(-1)))


@pytest.mark.parametrize("rule", rules(UNMASKING) + rules(REMASKING), ids=str)
def test_ties_go_to_the_leftmost(rule):
    flat = torch.full((1, 40), 0.25)
    everywhere = torch.ones(1, 40, dtype=torch.bool)
    unmasks = rule in rules(UNMASKING)
    count = torch.tensor([4])
    view = step_view(
        masked=everywhere if unmasks else ~everywhere,
        revealed=~everywhere if unmasks else everywhere,
        editable=everywhere,
        candidates=torch.zeros(1, 40, dtype=torch.long),
        confidence=flat,
        commit_confidence=flat,
        noise=flat * 0,  # below every probability, so that rules of chance draw all
        step=count // 2,
        num_steps=count,
        total=count * 10,
        times_remasked=torch.zeros(1, 40, dtype=torch.long),
        entropy=flat,
        margin=flat,
        quality=flat,
        visible_confidence=flat,
    )
    chosen = positions(rule(view, torch.tensor([7])))
    assert chosen == ([] if isinstance(rule, NeverRemasking) else list(range(7)))


@pytest.fixture
def small_view():
    """Four masked positions, then four revealed ones; every figure orders them differently."""
    masked = torch.tensor([[True] * 4 + [False] * 4])
    scores = {
        "confidence": [0.9, 0.1, 0.5, 0.4, 0.0, 0.0, 0.0, 0.0],
        "margin": [0.1, 0.2, 0.8, 0.3, 0.9, 0.9, 0.9, 0.9],
        "entropy": [3.0, 0.1, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        "noise": [0.3, 0.2, 0.1, 0.9, 0.2, 0.9, 0.1, 0.3],
        "quality": [0.0, 0.0, 0.0, 0.0, 0.9, 0.4, 0.2, 0.5],
        "commit_confidence": [1.0, 1.0, 1.0, 1.0, 0.1, 0.9, 0.8, 0.3],
        "visible_confidence": [0.0] * 8,
    }
    return step_view(
        masked=masked,
        revealed=~masked,
        editable=masked | ~masked,
        candidates=torch.zeros(1, 8, dtype=torch.long),
        step=torch.tensor([2]),
        num_steps=torch.tensor([4]),
        total=torch.tensor([8]),
        times_remasked=torch.zeros(1, 8, dtype=torch.long),
        **{name: torch.tensor([values]) for name, values in scores.items()},
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RandomUnmasking(), [0, 3]),
        (ConfidenceUnmasking(), [0, 2]),
        (MarginUnmasking(), [2, 3]),
        (EntropyUnmasking(), [1, 3]),
        (ThresholdUnmasking(0.95), [0, 2]),
        (ThresholdUnmasking(0.4), [0, 2, 3]),
        (ThresholdUnmasking(0.0), [0, 1, 2, 3]),
        (NeverRemasking(), []),
        (RandomRemasking(), [5, 7]),
        (QualityRemasking(), [5, 6]),
        (QualityThresholdRemasking(0.2), []),
        (QualityThresholdRemasking(0.21), [6]),
        (QualityThresholdRemasking(0.99), [5, 6]),
        (RedraftRemasking(0.2), []),
        (RedraftRemasking(0.21), [5, 6]),
        (RedraftRemasking(0.1, score="visible_confidence"), [4, 5]),
        (RedraftUnmasking(0.95), [0, 2]),
        (RedraftUnmasking(0.4), [0, 2, 3]),
        (CommitConfidenceRemasking(), [4, 7]),
    ],
    ids=str,
)
def test_what_a_rule_prefers(small_view, rule, expected):
    assert positions(rule(small_view, torch.tensor([2]))) == expected


@pytest.mark.parametrize(
    ("drafts", "budget", "expected"),
    [(0, 0, [0, 2, 3]), (1, 0, [0, 2, 3]), (2, 0, [0]), (9, 0, [0]), (2, 2, [0, 2]), (0, 4, [0, 1, 2, 3])],
)
def test_each_draft_has_its_own_pace_and_keeps_the_grant(small_view, drafts, budget, expected):
    view = replace(small_view, times_remasked=torch.full((1, 8), drafts))
    assert positions(RedraftUnmasking(0.4, paces=(3, 1))(view, torch.tensor([budget]))) == expected


def test_a_draft_is_counted_within_the_block_and_by_one_position_that_was_taken_back(small_view):
    rule = RedraftUnmasking(0.0, paces=(1,))
    outside = replace(small_view, editable=small_view.masked, times_remasked=torch.tensor([[0] * 4 + [5] * 4]))
    assert positions(rule(outside, torch.tensor([0]))) == [0, 1, 2, 3]
    assert positions(rule(replace(outside, editable=small_view.editable), torch.tensor([0]))) == [0]


def test_one_doubted_token_costs_the_whole_draft(small_view):
    assert positions(RedraftRemasking(0.21)(small_view, torch.tensor([8]))) == [4, 5, 6, 7]
    assert positions(RedraftRemasking(0.2)(small_view, torch.tensor([8]))) == []
    doubt_outside = replace(small_view, revealed=small_view.revealed & (small_view.quality != 0.2))
    assert positions(RedraftRemasking(0.3)(doubt_outside, torch.tensor([8]))) == []


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


def test_remdm_conf_over_budget_keeps_the_least_sure(small_view):
    certain = changed(small_view, noise=torch.zeros(1, 8))
    assert positions(RemdmConfRemasking()(certain, torch.tensor([8]))) == [4, 5, 6, 7]
    assert positions(RemdmConfRemasking()(certain, torch.tensor([2]))) == [4, 7]


def test_remdm_conf_is_still_at_the_first_and_last_step(small_view):
    for step in (0, 3):
        still = changed(small_view, step=torch.tensor([step]), noise=torch.zeros(1, 8))
        assert not RemdmConfRemasking(scale=9.0)(still, torch.tensor([8])).any()


@pytest.mark.other_types
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ThresholdUnmasking(1.1), "`threshold` of ThresholdUnmasking must be a probability in \\[0, 1\\], found 1.1"),
        (
            lambda: ThresholdUnmasking("0.9"),
            "`threshold` of ThresholdUnmasking must be a probability in .*, found '0.9'",
        ),
        (lambda: QualityThresholdRemasking(-1), "`threshold` of QualityThresholdRemasking must be a probability in \\[0, 1\\]"),
        (lambda: RedraftRemasking(2), "`threshold` of RedraftRemasking must be a probability in \\[0, 1\\], found 2"),
        (lambda: RedraftUnmasking(-1), "`threshold` of RedraftUnmasking must be a probability in \\[0, 1\\], found -1"),
        (
            lambda: RedraftRemasking(0.5, score="confidence"),
            "`score` of RedraftRemasking must be one of quality, visible_confidence, found 'confidence'",
        ),
        *(
            (
                lambda paces=paces: RedraftUnmasking(0.9, paces),
                "`paces` of RedraftUnmasking must list integers of at least 1, found",
            )
            for paces in ((), (0,), (2, 1.0), (True,), 3)
        ),
        (lambda: RemdmConfRemasking(0), "`scale` of RemdmConfRemasking must be a number above 0, found 0"),
        (lambda: RemdmConfRemasking(float("inf")), "`scale` of RemdmConfRemasking must be a number above 0, found inf"),
    ],
)
def test_settings_are_checked(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()
