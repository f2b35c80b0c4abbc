"""What is spared of remasking and editing: by rules, by editing rules and by deciders alike."""

from dataclasses import replace

import pytest
import torch
from sampling.small_samplers import MASK, build_model, generators, prompts

from prism_plugin.core import (
    EvenSchedule,
    P2Decider,
    QualityRemasking,
    RandomUnmasking,
    SwapEditing,
    ThresholdEditing,
)
from prism_plugin.errors import ConfigurationError
from prism_plugin.sampling import RemaskingSampler

NEW = 12
GENEROUS = {"schedule": EvenSchedule(9), "temperature": 1.0}
CHANGING = {
    "rule": {**GENEROUS, "unmasking": RandomUnmasking(), "remasking": QualityRemasking()},
    "decider": {**GENEROUS, "decider": P2Decider()},
    "editing": {"unmasking": RandomUnmasking(), "temperature": 1.0, "editing": ThresholdEditing(0.0)},
    "both": {**GENEROUS, "unmasking": RandomUnmasking(), "remasking": QualityRemasking(), "editing": ThresholdEditing(0.0)},
}


@pytest.fixture(scope="module")
def model():
    return build_model()


def changes_of(sampler, rows=3):
    """Of each look: positions taken back, positions overwritten, and those that hold a token."""
    output = sampler.sample(prompts(rows, 4), max_new_tokens=NEW, generator=generators(*range(rows)), return_trace=True)
    assert not (output.sequences == MASK).any()
    for record in output.trace:
        stood = record.tokens_before != MASK
        yield record.remasked, record.unmasked & stood, stood & (torch.arange(4 + NEW) >= 4)


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("times", [1, 2])
def test_no_position_is_changed_more_often_than_it_may(model, kind, times):
    sampler = RemaskingSampler(model, num_steps=16, **CHANGING[kind])
    often = sum(back.long() + edited for back, edited, _ in changes_of(sampler))
    assert often.max() > times, "without the cap"
    seldom = sum(back.long() + edited for back, edited, _ in changes_of(replace(sampler, max_remasks_per_position=times)))
    assert seldom.max() == times


@pytest.mark.parametrize("kind", CHANGING)
def test_a_look_changes_no_larger_share_than_it_may(model, kind):
    sampler = RemaskingSampler(model, num_steps=16, **CHANGING[kind])
    assert max(int(part.sum(-1).max()) for back, edited, _ in changes_of(sampler) for part in (back, edited)) > 3
    for share, most in ((0.25, 3), (0.3, 3), (0.01, 1)):
        for back, edited, _ in changes_of(replace(sampler, max_change_share=share)):
            assert back.sum(-1).max() <= most
            assert edited.sum(-1).max() <= most


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("length", [1, 4])
def test_what_was_changed_last_is_left_alone(model, kind, length):
    sampler = RemaskingSampler(model, num_steps=16, tabu_length=length, **CHANGING[kind])
    queue, changed, again = [[] for _ in range(3)], 0, 0
    for back, edited, _ in changes_of(sampler):
        for row in range(3):
            places = (back | edited)[row].nonzero().flatten().tolist()
            recent = queue[row][-length:]
            # those of one look leave the queue together: as many changes later as its length
            assert not set(places) & set(recent)
            changed, again = changed + len(places), again + len(set(places) & set(queue[row]))
            queue[row] += places
    assert changed > 10
    assert again > 0


def test_neighbours_go_with_a_token_as_far_as_the_grant_reaches(model):
    rules = {"unmasking": RandomUnmasking(), "remasking": QualityRemasking(), "temperature": 1.0}
    alone = RemaskingSampler(model, num_steps=16, schedule=EvenSchedule(1), **rules)
    beside = replace(alone, schedule=EvenSchedule(9), remasking=Worst(), remask_neighbours=2)
    seen = 0
    output = beside.sample(prompts(3, 4), max_new_tokens=NEW, generator=generators(0, 1, 2), return_trace=True)
    for record in output.trace:
        for row in range(3):
            places = record.remasked[row].nonzero().flatten().tolist()
            if places:
                stood = (record.tokens_before[row] != MASK) & (torch.arange(4 + NEW) >= 4)
                worst = int(record.quality[row].masked_fill(~stood, 2).argmin())
                assert worst in places
                near = {worst}
                for _ in range(2):
                    near |= {
                        place + side for place in near for side in (-1, 1) if 4 <= place + side < 16 and stood[place + side]
                    }
                assert set(places) <= near
                seen += len(places) > 1
    assert seen > 3


class Worst:
    """The one token with the lowest quality, whatever is granted."""

    needs = frozenset({"quality"})
    by_chance = False

    def __call__(self, view, budget):
        return QualityRemasking()(view, budget.clamp(max=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_change_share": 0.0}, r"`max_change_share` of RemaskingSampler must be a share in \(0, 1\], found 0.0"),
        ({"tabu_length": 0}, "`tabu_length` must be an integer of at least 1 or None, got 0"),
        ({"remask_neighbours": 0}, "`remask_neighbours` must be an integer of at least 1 or None, got 0"),
    ],
)
def test_settings_are_checked(model, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        RemaskingSampler(model, num_steps=4, remasking=QualityRemasking(), schedule=EvenSchedule(1), **settings)


@pytest.mark.parametrize("setting", [{"max_change_share": 0.5}, {"tabu_length": 2}, {"max_remasks_per_position": 1}])
def test_bounds_on_what_never_changes_are_refused(model, setting):
    with pytest.raises(
        ConfigurationError, match="would be ignored with NeverRemasking, which takes nothing back, and no editing"
    ):
        RemaskingSampler(model, num_steps=4, **setting)
    RemaskingSampler(model, num_steps=4, editing=SwapEditing(), **setting)


@pytest.mark.parametrize(
    "settings", [{}, {"editing": SwapEditing()}, {"decider": P2Decider(), "schedule": EvenSchedule(1)}], ids=str
)
def test_neighbours_need_a_remasking_rule(model, settings):
    with pytest.raises(ConfigurationError, match="`remask_neighbours` 1 would be ignored, since no remasking rule takes"):
        RemaskingSampler(model, num_steps=4, remask_neighbours=1, **settings)
