"""Methods of other papers as values and short blocks: a rule, an editor, a joint decider, a loop stepped from outside."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from sampling.small_samplers import MASK, build_model, generators, prompts

from prism_plugin.core import (
    BacktrackRemasking,
    EvenSchedule,
    FallenRemasking,
    KlassUnmasking,
    LoopSchedule,
    LowestRemasking,
    P2Decider,
    QualityRemasking,
    RandomUnmasking,
    RemediDecider,
    RollbackSchedule,
    SwapEditing,
    ThresholdEditing,
)
from prism_plugin.errors import UnknownNameError
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.canvas import lay_canvas

RANDOM = {"unmasking": RandomUnmasking(), "temperature": 1.0}
METHODS = {
    "t2t": {**RANDOM, "editing": ThresholdEditing(0.2)},
    "p2": {"decider": P2Decider(planner="quality"), "schedule": EvenSchedule(3), "temperature": 1.0},
    "p2, self-planned": {"decider": P2Decider(0.5, "visible_confidence"), "schedule": EvenSchedule(3), "temperature": 1.0},
    "p2, running": {"decider": P2Decider(planner="running_confidence"), "schedule": EvenSchedule(3)},
    "remedi": {"decider": RemediDecider(), "schedule": EvenSchedule(3)},
    "history mean": {**RANDOM, "remasking": LowestRemasking("mean_quality"), "schedule": EvenSchedule(2)},
    "logit diff": {**RANDOM, "remasking": FallenRemasking(0.0), "schedule": EvenSchedule(2)},
    "klass": {"unmasking": KlassUnmasking(0.3, 0.5)},
    "swap": {**RANDOM, "editing": SwapEditing(2), "schedule": LoopSchedule(0, 0.5)},
    "backtrack": {**RANDOM, "remasking": BacktrackRemasking(0.5), "schedule": EvenSchedule(9)},
    "rolled back": {"remasking": QualityRemasking(), "schedule": RollbackSchedule(2, 0.5)},
}


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("block_length", [None, 4])
def test_a_method_samples_traces_saves_and_loads(model, tmp_path, name, block_length):
    sampler = RemaskingSampler(model, num_steps=10, block_length=block_length, **METHODS[name])
    ids = prompts(3, 4)
    output = sampler.sample(ids, max_new_tokens=12, generator=generators(0, 1, 2), return_trace=True)
    assert torch.equal(output.sequences[:, :4], ids)
    assert not (output.sequences == MASK).any()
    assert not output.trace[-1].remasked.any(), "the last look takes nothing back"
    assert output.num_forward_passes.max() <= 10
    assert len(output.trace) == output.num_forward_passes.max()
    for record in output.trace:
        written = torch.where(record.unmasked, record.tokens_after, record.tokens_before)
        assert torch.equal(torch.where(record.remasked, MASK, written), record.tokens_after)
        assert not (record.tokens_after[record.unmasked] == MASK).any()
    sampler.save_pretrained(tmp_path)
    again = RemaskingSampler.from_pretrained(tmp_path, model)
    assert again.to_dict() == sampler.to_dict()
    other = again.sample(ids, max_new_tokens=12, generator=generators(0, 1, 2))
    assert torch.equal(other.sequences, output.sequences)
    if name not in ("t2t", "klass", "swap"):
        assert output.num_remasked.sum() > 0


def probabilities(model, tokens):
    rows = model(tokens, logits_at=torch.ones_like(tokens, dtype=torch.bool)).logits.float()
    rows[:, MASK] = -torch.inf
    return rows.softmax(-1).view(*tokens.shape, -1)


@torch.no_grad()
def test_an_edit_is_another_token_that_the_model_is_sure_of(model):
    sampler = RemaskingSampler(model, num_steps=10, **METHODS["t2t"])
    output = sampler.sample(prompts(4, 4), max_new_tokens=12, generator=generators(0, 1, 2, 3), return_trace=True)
    edits = 0
    for record in output.trace:
        best = probabilities(model, record.tokens_before).max(-1)
        own = torch.arange(16) >= 4
        visible = own & (record.tokens_before != MASK)
        expected = visible & (best.indices != record.tokens_before) & (best.values > 0.2)
        assert torch.equal(record.unmasked & visible, expected)
        assert torch.equal(record.tokens_after[expected], best.indices[expected])
        edits += int(expected.sum())
    assert edits > 5


@torch.no_grad()
def test_p2_keeps_what_ranks_highest(model):
    sampler = RemaskingSampler(model, num_steps=6, **METHODS["p2"])
    output = sampler.sample(prompts(2, 4), max_new_tokens=12, generator=generators(0, 1), return_trace=True)
    for number, record in enumerate(output.trace):
        target = -(-(number + 1) * 12 // 6)
        scores = torch.where(record.tokens_before == MASK, record.confidence, record.quality)[:, 4:]
        for row in range(2):
            kept = set(scores[row].topk(target).indices.tolist())
            stands = (record.tokens_before[row, 4:] != MASK).nonzero().flatten().tolist()
            taken = set(record.remasked[row, 4:].nonzero().flatten().tolist())
            assert taken <= set(stands) - kept
            assert (record.tokens_after[row, 4:] != MASK).sum() == target


def test_four_particles_are_resampled_outside_the_loop(model):
    """Self-rewarding SMC (arXiv 2602.01849): particles of one prompt, weighted by the log probability of what they wrote."""
    sampler = RemaskingSampler(model, num_steps=8, remasking=QualityRemasking(), schedule=EvenSchedule(1), **RANDOM)
    request = torch.cat((prompts(1, 4), torch.full((1, 12), MASK)), dim=1).repeat(4, 1)
    canvas = lay_canvas(request, torch.ones_like(request).bool(), request == MASK, None)
    loop = sampler.loop(canvas, generators(0, 1, 2, 3))
    state, resampled, chance = loop.begin(canvas), 0, torch.Generator().manual_seed(9)
    while (step := loop.advance(state)) is not None:
        state = step.state
        log_weights = (state.commit_confidence.log() * canvas.editable).sum(-1)
        if int(state.num_forward_passes[0]) % 3 == 0:
            chosen = log_weights.softmax(0).multinomial(4, replacement=True, generator=chance)
            state, resampled = state.take(chosen), resampled + 1
    loop.finish(state)
    assert resampled == 2
    assert not (state.tokens == MASK).any()
    assert state.num_forward_passes.tolist() == [8] * 4
    assert torch.equal(state.tokens[:, :4], request[:, :4])


def test_rows_wait_and_given_tokens_stand(model):
    sampler = RemaskingSampler(model, num_steps=4, unmasking=RandomUnmasking(), temperature=1.0)
    request = torch.full((2, 8), MASK)
    canvas = lay_canvas(request, torch.ones_like(request).bool(), request == MASK, None)
    loop = sampler.loop(canvas, generators(0, 1))
    given = torch.full_like(request, -1)
    given[1] = torch.arange(3, 11)
    first = loop.advance(loop.begin(canvas), rows=torch.tensor([False, True]), given=given).state
    assert (first.tokens[0] == MASK).all()
    assert first.num_forward_passes.tolist() == [0, 1]
    state = first
    while (step := loop.advance(state, given=given)) is not None:
        state = step.state
    loop.finish(state)
    assert state.tokens[1].tolist() == list(range(3, 11)), "a reference's tokens are pinned"
    assert state.num_forward_passes.tolist() == [4, 4]


def test_a_need_that_is_no_feature_is_refused_when_the_sampler_is_made(model):
    @dataclass(frozen=True)
    class Misspelt:
        needs: ClassVar[frozenset[str]] = frozenset({"qualty"})

        def __call__(self, view, budget):
            return view.revealed

    with pytest.raises(UnknownNameError, match=r"`needs` of Misspelt: No feature is called 'qualty' \(did you mean 'quality'"):
        RemaskingSampler(model, num_steps=4, remasking=Misspelt(), schedule=EvenSchedule(1))


def test_a_decider_reaches_back_where_it_says_so(model):
    @dataclass(frozen=True)
    class Reaching(P2Decider):
        reach: ClassVar[str] = "begun"

    settings = {"num_steps": 12, "block_length": 4, "temperature": 1.0, "schedule": EvenSchedule(2)}
    reaching = RemaskingSampler(model, decider=Reaching(), **settings)
    output = reaching.sample(prompts(3, 4), max_new_tokens=12, generator=generators(0, 1, 2), return_trace=True)
    assert not (output.sequences == MASK).any()
    last = [record for record in output.trace if record.unmasked[:, 12:].any()]
    assert any(record.remasked[:, 4:8].any() for record in output.trace if record.unmasked[:, 8:].any())
    assert last
    within = replace(reaching, decider=P2Decider())
    for record in within.sample(prompts(3, 4), max_new_tokens=12, generator=generators(0, 1, 2), return_trace=True).trace:
        for row in range(3):
            touched = (record.unmasked[row] | record.remasked[row]).nonzero().flatten()
            assert len({int(place - 4) // 4 for place in touched}) <= 1
