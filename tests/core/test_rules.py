"""Invariants of every registered unmasking and remasking rule, and what each one prefers."""

from dataclasses import replace

import pytest
import torch
from views import FEATURES, changed, step_view, tensors_of

from prism_plugin.core.detectors import (
    BacktrackRemasking,
    BelowRemasking,
    FallenRemasking,
    LowestRemasking,
    ReplacedRemasking,
)
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
from prism_plugin.core.remdm import RemdmCapRemasking, RemdmRescaleRemasking
from prism_plugin.core.unmasking import (
    UNMASKING,
    ConfidenceUnmasking,
    EntropyUnmasking,
    FactorUnmasking,
    KlassUnmasking,
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
    "remdm_cap": {"eta": 0.5},
    "remdm_rescale": {"eta": 0.5},
    "redraft": {"threshold": 0.7},
    "lowest": {"score": "mean_confidence"},
    "below": {"threshold": 0.4, "score": "visible_confidence"},
    "replaced": {"threshold": 0.2},
    "fallen": {"threshold": 0.1},
    "backtrack": {"threshold": 0.4},
    "klass": {"threshold": 0.4, "divergence": 0.5},
    "factor": {"factor": 1.0},
}


def rules(registry):
    more = [
        RedraftRemasking(0.4, score="visible_confidence"), LowestRemasking("commit_confidence"), BelowRemasking(0.5, "quality"),
        BelowRemasking(0.5, "shadow_confidence"), BelowRemasking(0.5, "visible_confidence", 0.5),
        BacktrackRemasking(0.3, "commit_confidence"),
    ]  # fmt: skip
    return (more if registry is REMASKING else []) + [
        registry.from_dict({"name": name, **SETTINGS.get(name, {})})
        for name in registry.names()
        if registry.get(name).__module__.startswith("prism_plugin.core.")
    ]


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
        best_visible=torch.randint(50, (batch, length), generator=generator),
        best_visible_confidence=per_token(),
        looks_since=torch.randint(-1, 5, (batch, length), generator=generator).float(),
        **{name: per_token() for name in sorted(FEATURES - OF_THE_VIEW)},
    )


OF_THE_VIEW = {
    "noise", "entropy", "margin", "quality", "visible_confidence", "best_visible", "best_visible_confidence", "looks_since",
}  # fmt: skip


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
        if isinstance(rule, ThresholdUnmasking | RedraftUnmasking | FactorUnmasking | KlassUnmasking):
            assert (reveal.sum(-1) >= granted).all()
        else:
            assert torch.equal(reveal.sum(-1), granted)


@pytest.mark.parametrize("rule", rules(REMASKING), ids=str)
def test_positions_taken_back_were_revealed_and_stay_within_the_budget(rule):
    for view, budget in cases():
        remask = rule(view, budget)
        assert not (remask & ~view.revealed).any()
        assert (remask.sum(-1) <= budget).all()
        if isinstance(rule, QualityRemasking | CommitConfidenceRemasking | RandomRemasking | LowestRemasking):
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
        previous_confidence=flat * 3,
        best_visible=torch.ones(1, 40, dtype=torch.long),
        best_visible_confidence=flat,
        looks_since=flat * 0,
        **dict.fromkeys(sorted(FEATURES - OF_THE_VIEW - {"previous_confidence"}), flat),
    )
    chosen = positions(rule(view, torch.tensor([7])))
    assert chosen == ([] if isinstance(rule, NeverRemasking) else list(range(7)))


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
        (LowestRemasking("mean_confidence"), [5, 7]),
        (LowestRemasking("commit_confidence"), [4, 7]),
        (BelowRemasking(0.25, "mean_confidence"), [5, 7]),
        (BelowRemasking(0.15, "mean_confidence"), [7]),
        (BelowRemasking(0.25, "shadow_confidence"), [4]),
        (ReplacedRemasking(0.85), [4, 7]),  # 6 has the token that the model would write
        (ReplacedRemasking(0.92), [7]),
        (FallenRemasking(0.2), [5, 7]),
        (FallenRemasking(0.55), [5]),
        (BacktrackRemasking(0.15), []),
        (BacktrackRemasking(0.3), [5, 6]),  # 6 is doubted, so what was written with it or since: 5, 6 and 7, the last first
        (FactorUnmasking(0.1), [0, 2]),
        (FactorUnmasking(1.0), [0, 2]),
        (FactorUnmasking(1.9), [0, 2]),  # 0.4 is below 1 - 1.9 / 4
        (FactorUnmasking(2.5), [0, 2, 3]),  # and above 1 - 2.5 / 4
        (KlassUnmasking(0.05, 0.01), [1, 2]),
        (KlassUnmasking(0.3, 0.01), [0, 2]),
        (KlassUnmasking(0.3, 1e-4), [0, 2]),
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


def test_a_second_failure_goes_back_further(small_view):
    budget = torch.tensor([4])
    assert positions(BacktrackRemasking(0.3)(small_view, budget)) == [5, 6, 7]
    again = replace(small_view, times_remasked=torch.tensor([[0] * 7 + [1]]))
    assert positions(BacktrackRemasking(0.3)(again, budget)) == [4, 5, 6, 7]


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
        (lambda: RemdmCapRemasking(0), "`eta` of RemdmCapRemasking must be a probability in \\(0, 1\\], found 0"),
        (lambda: RemdmRescaleRemasking(1.5), "`eta` of RemdmRescaleRemasking must be a probability in \\(0, 1\\], found 1.5"),
        (lambda: LowestRemasking("age"), "`score` of LowestRemasking must be one of quality, mean_quality, .*, found 'age'"),
        (lambda: BelowRemasking(2, "quality"), "`threshold` of BelowRemasking must be a probability"),
        (lambda: ReplacedRemasking(-1), "`threshold` of ReplacedRemasking must be a probability"),
        (lambda: FallenRemasking(2), "`threshold` of FallenRemasking must be a fall of a probability"),
        (lambda: BacktrackRemasking(0.5, "nothing"), "`score` of BacktrackRemasking must be one of"),
        (lambda: FactorUnmasking(0), "`factor` of FactorUnmasking must be a number above 0, found 0"),
        (lambda: KlassUnmasking(2, 0.1), "`threshold` of KlassUnmasking must be a probability"),
        (lambda: KlassUnmasking(0.5, 0), "`divergence` of KlassUnmasking must be a number above 0"),
        (lambda: RemdmConfRemasking(0), "`scale` of RemdmConfRemasking must be a number above 0, found 0"),
        (lambda: RemdmConfRemasking(float("inf")), "`scale` of RemdmConfRemasking must be a number above 0, found inf"),
    ],
)
def test_settings_are_checked(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()
