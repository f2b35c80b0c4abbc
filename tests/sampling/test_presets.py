import pytest
import torch

from prism_plugin.core import (
    CommitConfidenceRemasking,
    ConfidenceUnmasking,
    EvenSchedule,
    LoopSchedule,
    MarginUnmasking,
    NeverRemasking,
    QualityRemasking,
    QualityThresholdRemasking,
    RandomUnmasking,
    RedraftRemasking,
    RedraftSchedule,
    RedraftUnmasking,
    RefineSchedule,
    RemdmConfRemasking,
    ThresholdUnmasking,
)
from prism_plugin.errors import ConfigurationError, UnknownKeyError, UnknownNameError
from prism_plugin.sampling import PRESETS, Preset, RemaskingSampler, get_preset

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
]


def test_every_preset_is_in_the_table():
    assert sorted(PRESETS) == sorted(row[0] for row in TABLE)


@pytest.mark.parametrize(("name", "unmasking", "remasking", "schedule", "temperature"), TABLE)
def test_what_each_preset_is(model, name, unmasking, remasking, schedule, temperature):
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
