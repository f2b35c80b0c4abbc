import pytest
import torch

from prism_plugin.core import (
    BacktrackRemasking,
    BelowRemasking,
    CapsSchedule,
    CommitConfidenceRemasking,
    ConfidenceUnmasking,
    CorrectedEditing,
    EvenSchedule,
    FactorUnmasking,
    FallenRemasking,
    KlassUnmasking,
    LoopSchedule,
    LowestRemasking,
    MarginUnmasking,
    NeverRemasking,
    OwnPaceSchedule,
    P2Decider,
    PlateauSchedule,
    QualityRemasking,
    QualityThresholdRemasking,
    RandomUnmasking,
    RedraftRemasking,
    RedraftSchedule,
    RedraftUnmasking,
    RefineSchedule,
    RemdmCapRemasking,
    RemdmConfRemasking,
    RemdmRescaleRemasking,
    RemediDecider,
    ReplacedRemasking,
    RollbackSchedule,
    SwapEditing,
    ThresholdEditing,
    ThresholdUnmasking,
    WinoDecider,
)
from prism_plugin.decoding import CorrectedLook, ShadowLook
from prism_plugin.errors import ConfigurationError, UnknownKeyError, UnknownNameError
from prism_plugin.sampling import PRESETS, Preset, RemaskingSampler, get_preset
from prism_plugin.sampling.trajectories import BestOfN, PartialRefinement, ParticleGibbs, SelfRewardingSMC

NO_CAP = 2**31 - 1


TABLE = [
    ("random", RandomUnmasking(), NeverRemasking(), EvenSchedule(), 1.0),
    ("remdm-conf", RandomUnmasking(), RemdmConfRemasking(1.0), EvenSchedule(NO_CAP), 1.0),
    ("prism", RandomUnmasking(), QualityRemasking(), EvenSchedule(4), 1.0),
    ("confidence", ConfidenceUnmasking(), NeverRemasking(), EvenSchedule(), 0.0),
    ("threshold", ThresholdUnmasking(0.9), NeverRemasking(), EvenSchedule(), 0.0),
    ("prism-confidence", ConfidenceUnmasking(), QualityRemasking(), EvenSchedule(1), 0.0),
    ("prism-threshold", ThresholdUnmasking(0.9), QualityRemasking(), EvenSchedule(1), 0.0),
    ("prism-refine", ConfidenceUnmasking(), QualityThresholdRemasking(0.9), RefineSchedule(32, 2), 0.0),
    ("redraft", RedraftUnmasking(0.9), RedraftRemasking(0.5, "visible_confidence"), RedraftSchedule(), 0.0),
    ("prism-redraft", RedraftUnmasking(0.9), RedraftRemasking(0.9), RedraftSchedule(), 0.0),
    ("remdm-cap", RandomUnmasking(), RemdmCapRemasking(0.008), EvenSchedule(NO_CAP), 1.0),
    ("remdm-rescale", RandomUnmasking(), RemdmRescaleRemasking(0.015), EvenSchedule(NO_CAP), 1.0),
    ("remdm-loop", RandomUnmasking(), RemdmCapRemasking(0.02), PlateauSchedule(NO_CAP, 0.45, 0.95, 0.9), 1.0),
    ("t2m", ThresholdUnmasking(0.7), BelowRemasking(0.3, "visible_confidence"), OwnPaceSchedule(NO_CAP), 0.0),
    ("t2t", ThresholdUnmasking(0.7), NeverRemasking(), OwnPaceSchedule(), 0.0),
    ("history-mean", ConfidenceUnmasking(), LowestRemasking("mean_confidence"), CapsSchedule((16, 8, 4), 0.4), 0.0),
    ("rcr", ConfidenceUnmasking(), NeverRemasking(), EvenSchedule(NO_CAP), 0.0),
    ("wino", ConfidenceUnmasking(), NeverRemasking(), OwnPaceSchedule(NO_CAP), 0.0),
    ("klass", KlassUnmasking(0.6, 0.01), NeverRemasking(), EvenSchedule(), 0.0),
    ("factor", FactorUnmasking(1.0), NeverRemasking(), EvenSchedule(), 0.0),
    ("p2", ConfidenceUnmasking(), NeverRemasking(), EvenSchedule(NO_CAP), 0.0),
    ("remedi", ConfidenceUnmasking(), NeverRemasking(), EvenSchedule(NO_CAP), 0.0),
    ("proseco", ConfidenceUnmasking(), NeverRemasking(), EvenSchedule(), 0.0),
    ("backplay", ConfidenceUnmasking(), QualityThresholdRemasking(0.5), RollbackSchedule(2, 0.75), 0.0),
    ("cdlm", ConfidenceUnmasking(), BelowRemasking(0.9, "visible_confidence"), RefineSchedule(NO_CAP, 4), 0.0),
    ("gidd", ConfidenceUnmasking(), NeverRemasking(), LoopSchedule(0, 0.5), 0.0),
    ("best_of", ConfidenceUnmasking(), NeverRemasking(), EvenSchedule(), 1.0),
    ("self_rewarding_smc", ThresholdUnmasking(0.9), NeverRemasking(), EvenSchedule(), 1.0),
    ("particle_gibbs", RandomUnmasking(), NeverRemasking(), EvenSchedule(), 1.0),
    ("partial_refinement", ConfidenceUnmasking(), NeverRemasking(), EvenSchedule(), 0.0),
    ("backtrack", ConfidenceUnmasking(), BacktrackRemasking(0.5, "quality"), EvenSchedule(NO_CAP), 0.0),
]


def test_every_preset_is_in_the_table():
    assert sorted(PRESETS) == sorted(row[0] for row in TABLE)


# Of the other papers': what they are beside an unmasking rule, a remasking rule and a schedule.
MORE = {
    "t2t": {"editing": ThresholdEditing(0.5)},
    "t2m": {"max_remasks_per_position": 1, "max_change_share": 0.25},
    "rcr": {"decider": P2Decider(planner="running_confidence")},
    "wino": {"decider": WinoDecider(0.6, 0.9), "look": ShadowLook()},
    "p2": {"decider": P2Decider(1.0, "visible_confidence")},
    "remedi": {"decider": RemediDecider()},
    "proseco": {"editing": CorrectedEditing(), "look": CorrectedLook(2, 4)},
    "backplay": {"tabu_length": 10},
    "gidd": {"editing": SwapEditing(1)},
    "best_of": {"trajectory": BestOfN(4, "log_probability")},
    "self_rewarding_smc": {"trajectory": SelfRewardingSMC(4, "log_probability", 4, 0.5, "multinomial")},
    "particle_gibbs": {"trajectory": ParticleGibbs(4, "quality", 4, 1.0, 4)},
    "partial_refinement": {"trajectory": PartialRefinement(4, 0.25, "doubt", "quality")},
}
FIELDS = (
    "trajectory", "editing", "decider", "look", "max_remasks_per_position", "max_change_share", "tabu_length",
    "remask_neighbours",
)  # fmt: skip


def test_no_two_presets_are_the_same(model):
    """The rules and settings of each are its own, its temperature among them."""
    kinds = [repr(RemaskingSampler.from_preset(name, model, num_steps=8)) for name in PRESETS]
    assert len(set(kinds)) == len(PRESETS)


@pytest.mark.parametrize(("name", "unmasking", "remasking", "schedule", "temperature"), TABLE)
def test_what_each_preset_is(model, name, unmasking, remasking, schedule, temperature):
    redraft_cap = {"max_remasks_per_position": 3} if "redraft" in name else {}
    found = vars(RemaskingSampler.from_preset(name, model, num_steps=17))
    assert {field: found[field] for field in FIELDS if found[field] is not None} == {**MORE.get(name, {}), **redraft_cap}
    sampler = RemaskingSampler.from_preset(name, model, num_steps=17)
    assert sampler.num_steps == 17
    assert (sampler.unmasking, sampler.remasking, sampler.schedule) == (unmasking, remasking, schedule)
    assert (sampler.temperature, sampler.top_p, sampler.block_length) == (temperature, 1.0, None)
    assert PRESETS[name].source


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("random", {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ("remdm-conf", {"scale": 3.0}, {"remasking": RemdmConfRemasking(3.0)}),
        ("remdm-conf", {"num_remask": 2}, {"schedule": EvenSchedule(2)}),
        ("prism", {"num_remask": 2, "remask_from": 0.5}, {"schedule": EvenSchedule(2, 0.5)}),
        ("prism", {"remask_until": 0.5}, {"schedule": EvenSchedule(4, 0.0, 0.5)}),
        ("prism", {"draft_share": 0.5}, {"schedule": LoopSchedule(4, 0.5)}),
        ("prism", {"quality_threshold": 0.3}, {"remasking": QualityThresholdRemasking(0.3)}),
        ("prism-confidence", {"max_remasks_per_position": 2}, {"max_remasks_per_position": 2}),
        ("prism-threshold", {"threshold": 0.5}, {"unmasking": ThresholdUnmasking(0.5)}),
        ("prism-refine", {"num_rounds": 3, "num_remask": 2}, {"schedule": RefineSchedule(2, 3)}),
        (
            "prism-redraft",
            {"threshold": 0.8, "paces": [2]},
            {"unmasking": RedraftUnmasking(0.8, (2,)), "max_remasks_per_position": 1},
        ),
        ("prism-redraft", {"quality_threshold": 0.8}, {"remasking": RedraftRemasking(0.8)}),
        ("redraft", {"visible_threshold": 0.8}, {"remasking": RedraftRemasking(0.8, "visible_confidence")}),
        ("prism-redraft", {"min_steps": 2}, {"schedule": RedraftSchedule(2)}),
        ("confidence", {"block_length": 4, "eos_token_id": 1}, {"block_length": 4, "eos_token_id": 1}),
        ("remdm-cap", {"eta": 0.04}, {"remasking": RemdmCapRemasking(0.04)}),
        ("remdm-loop", {"begin": 0.5, "level": 0.8}, {"schedule": PlateauSchedule(NO_CAP, 0.5, 0.95, 0.8)}),
        ("t2m", {"replaced_threshold": 0.9}, {"remasking": ReplacedRemasking(0.9)}),
        ("t2m", {"fall": 0.2, "max_change_share": 1.0}, {"remasking": FallenRemasking(0.2), "max_change_share": 1.0}),
        ("t2t", {"edit_threshold": 0.0, "blocks": "begun"}, {"editing": ThresholdEditing(0.0, "begun")}),
        (
            "history-mean",
            {"score": "mean_quality", "caps": [2]},
            {"remasking": LowestRemasking("mean_quality"), "schedule": CapsSchedule((2,))},
        ),
        ("rcr", {"planner": "commit_confidence"}, {"decider": P2Decider(planner="commit_confidence")}),
        ("wino", {"verify": 0.5}, {"decider": WinoDecider(0.6, 0.5)}),
        ("proseco", {"every": 1, "most": 2}, {"look": CorrectedLook(1, 2)}),
        ("proseco", {"quality_threshold": 0.4}, {"editing": CorrectedEditing(quality_below=0.4)}),
        ("t2t", {"quality_threshold": 0.4}, {"editing": ThresholdEditing(0.5, quality_below=0.4)}),
        ("gidd", {"quality_threshold": 0.4}, {"editing": SwapEditing(1, quality_below=0.4)}),
        ("cdlm", {"quality_threshold": 0.4}, {"remasking": BelowRemasking(0.9, "visible_confidence", 0.4)}),
        ("proseco", {"threshold": 0.9}, {"unmasking": ThresholdUnmasking(0.9)}),
        ("prism", {"remask_neighbours": 2}, {"remask_neighbours": 2}),
        ("gidd", {"num_swaps": 3}, {"editing": SwapEditing(3)}),
    ],
)
def test_settings_reach_what_they_set_and_nothing_else(model, name, settings, expected):
    plain = vars(RemaskingSampler.from_preset(name, model, num_steps=8))
    assert vars(RemaskingSampler.from_preset(name, model, num_steps=8, **settings)) == plain | expected


@pytest.mark.parametrize("name", ["redraft", "prism-redraft"])
def test_drafts_that_would_repeat_are_not_made(model, name):
    def cap(**settings):
        return RemaskingSampler.from_preset(name, model, num_steps=30, **settings).max_remasks_per_position

    assert [cap(), cap(paces=[4, 2]), cap(temperature=0.5), cap(max_remasks_per_position=7)] == [3, 2, None, 7]


@pytest.mark.parametrize(
    ("name", "settings", "error", "words"),
    [
        ("prisms", {}, UnknownNameError, "No preset is called 'prisms' .did you mean 'prism'"),
        ("random", {"num_remask": 1}, UnknownKeyError, "'random' has no 'num_remask'; it takes temperature, top_p"),
        ("prism", {"threshold": 0.5, "depth": 1}, UnknownKeyError, "'prism' has no 'depth', 'threshold'"),
        ("prism", {"draft_share": 0.5, "remask_from": 0.1}, ConfigurationError, "`remask_from` would be ignored with `draft"),
        ("prism", {"num_remask": 0}, ConfigurationError, "the schedule grants no remasks"),
        ("threshold", {"threshold": 2}, ConfigurationError, "`threshold` of ThresholdUnmasking must be"),
    ],
)
def test_settings_that_a_preset_cannot_take_are_refused(model, name, settings, error, words):
    with pytest.raises(error, match=words):
        RemaskingSampler.from_preset(name, model, num_steps=8, **settings)


def test_a_preset_is_the_rules_that_it_names(model, monkeypatch):
    mine = Preset("mine", MarginUnmasking(), CommitConfidenceRemasking(), EvenSchedule(1))
    monkeypatch.setattr("prism_plugin.sampling.presets.PRESETS", {**PRESETS, "mine": mine})
    sampler = RemaskingSampler.from_preset("mine", model, num_steps=8)
    assert (sampler.unmasking, sampler.remasking) == (MarginUnmasking(), CommitConfidenceRemasking())


def test_prism_says_how_it_differs_from_the_authors_sudoku_sampling():
    """Theirs (prob_path.py, `_score_tokens`) takes back all r or none, and none unless r < generated < M - r."""
    preset, steps, theirs, ours = PRESETS["prism"], torch.tensor([51]), 0, 0
    r = preset.schedule.num_remask
    for generated in range(51):  # one more after each step
        count = torch.tensor([generated])
        ours += int(preset.schedule(count, steps, steps, count).remask)
        theirs += r * (r < generated < 51 - r)
    assert (ours, theirs) == (184, 168)
    assert f"{ours} in 51 steps for 51 tokens, theirs {theirs}" in preset.source


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["prism"] = get_preset("random")
    with pytest.raises(TypeError):
        get_preset("prism").defaults["num_remask"] = 1
