"""Rules and models at their limits: idle steps, NaN, edits of masks, grants that nobody may use, deciders that see nothing."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from sampling.small_samplers import MASK, build_model, generators, prompts

from prism_plugin.core import (
    ConfidenceUnmasking,
    Decision,
    EvenSchedule,
    P2Decider,
    RandomUnmasking,
    ThresholdUnmasking,
    select_top,
)
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.sampling import RemaskingSampler


@pytest.fixture(scope="module")
def model():
    return build_model()


@dataclass(frozen=True)
class MeanQuality:
    """Take back by a mean, in which one look's NaN stays."""

    needs: ClassVar[frozenset[str]] = frozenset({"mean_quality"})

    def __call__(self, view, budget):
        return select_top(-view.require("mean_quality", self), view.revealed, budget)


@dataclass(frozen=True)
class Blind(P2Decider):
    """Write what was granted and take back by chance, whatever the look says."""

    blind: ClassVar[bool] = True

    @property
    def needs(self):
        return frozenset({"noise"})

    def __call__(self, view, budget):
        remask = select_top(view.noise, view.revealed, budget.remask)
        grant = budget.target - (view.editable & ~view.masked).sum(-1) + remask.sum(-1)
        return Decision(write=select_top(view.noise, view.masked, grant.clamp(min=0)), remask=remask)


def test_steps_with_nothing_to_do_are_passed_over_to_the_end_of_the_block(model):
    """A threshold fills a block at its first look; the hundred steps that are left make no look and do not hold the row."""
    sampler = RemaskingSampler(model, num_steps=400, block_length=4, unmasking=ThresholdUnmasking(0.0))
    output = sampler.sample(prompts(2, 4), max_new_tokens=16)
    assert output.num_forward_passes.tolist() == [4, 4]
    assert not (output.sequences == MASK).any()


def test_padding_follows_an_eos_however_many_steps_are_left(model):
    found = RemaskingSampler(model, num_steps=8, unmasking=ThresholdUnmasking(0.0)).sample(prompts(1, 4), max_new_tokens=8)
    eos = int(found.sequences[0, 6])
    end = 4 + found.sequences[0, 4:].tolist().index(eos)
    settings = {"unmasking": ThresholdUnmasking(0.0), "eos_token_id": eos}
    few, many = (
        RemaskingSampler(model, num_steps=steps, **settings).sample(prompts(1, 4), max_new_tokens=8) for steps in (8, 256)
    )
    assert torch.equal(few.sequences, many.sequences)
    assert len(set(many.sequences[0, end + 1 :].tolist())) == 1, "padding"
    assert not torch.equal(many.sequences, found.sequences)


def test_an_editing_rule_that_names_masks_edits_tokens_alone(model):
    sampler = RemaskingSampler(
        model, num_steps=6, unmasking=RandomUnmasking(), temperature=1.0, editing=lambda view: view.editable | view.masked
    )
    output = sampler.sample(prompts(2, 4), max_new_tokens=12, generator=generators(0, 1), return_trace=True)
    for number, record in enumerate(output.trace):
        filled = (record.unmasked & (record.tokens_before == MASK)).sum(-1)
        assert filled.tolist() == [2, 2], f"look {number} fills what was granted"


def test_a_number_that_is_none_stops_the_sampler_by_whatever_feature_it_comes():
    broken = build_model()
    with torch.no_grad():
        next(broken.quality_head.parameters()).fill_(float("nan"))
    sampler = RemaskingSampler(broken, num_steps=6, remasking=MeanQuality(), schedule=EvenSchedule(2))
    with pytest.raises(SamplingError, match="the quality head gave NaN"):
        sampler.sample(prompts(2, 4), max_new_tokens=12)


@pytest.mark.parametrize(
    ("decider", "settings", "words"),
    [
        (lambda view, budget: None, {}, "A decider says how it is to be asked, but function lacks `needs`"),
        (P2Decider(), {}, "`decider` is P2Decider, but the schedule grants no remasks"),
        (P2Decider(), {"schedule": EvenSchedule(2), "remasking": MeanQuality()}, "MeanQuality would be ignored"),
        ("never", {"schedule": EvenSchedule(2)}, "`decider` is Never, which takes nothing back"),
        ("never", {"max_remasks_per_position": 1}, "would be ignored with Never"),
    ],
)
def test_grants_and_who_takes_back_must_go_together(model, decider, settings, words):
    @dataclass(frozen=True)
    class Never(P2Decider):
        takes_back: ClassVar[bool] = False

    with pytest.raises(ConfigurationError, match=words):
        RemaskingSampler(model, num_steps=6, decider=Never() if decider == "never" else decider, **settings)


def test_a_blind_decider_that_takes_back_fills_what_it_took(model):
    sampler = RemaskingSampler(model, num_steps=8, decider=Blind(), schedule=EvenSchedule(2), temperature=1.0)
    output = sampler.sample(prompts(3, 4), max_new_tokens=12, generator=generators(0, 1, 2))
    assert output.num_remasked.sum() > 0
    assert not (output.sequences == MASK).any()


def test_a_streamer_is_told_what_stays_where_a_decider_reaches_back(model):
    @dataclass(frozen=True)
    class Reaching(P2Decider):
        reach: ClassVar[str] = "begun"

    class Told:
        def __init__(self):
            self.parts = []

        def put(self, tokens):
            self.parts.append(tokens.flatten().tolist())

        def end(self):
            self.parts.append("end")

    settings = {"num_steps": 12, "block_length": 4, "temperature": 1.0, "schedule": EvenSchedule(2)}
    reaching, told = RemaskingSampler(model, decider=Reaching(), **settings), Told()
    output = reaching.sample(prompts(1, 4), max_new_tokens=12, generator=generators(0), streamer=told)
    row = output.sequences[0].tolist()
    assert told.parts == [row[:4], row[4:], "end"]
    within, told = replace(reaching, decider=None, unmasking=ConfidenceUnmasking(), schedule=EvenSchedule()), Told()
    within.sample(prompts(1, 4), max_new_tokens=12, generator=generators(0), streamer=told)
    assert len(told.parts) == 5, "blocks are told of one by one where they stay"
