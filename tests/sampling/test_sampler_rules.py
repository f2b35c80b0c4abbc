"""What rules are given, what is never drawn, and what surrounds a request: modes, records, gradients."""

import itertools
from dataclasses import replace

import pytest
import torch
from reference import sampler as reference
from small_samplers import MASK, NEW, PROMPT, build_model, confident, prompts, sampled

from prism_plugin.core import ConfidenceUnmasking, EntropyUnmasking, EvenSchedule, RedraftSchedule, select_top
from prism_plugin.sampling import RemaskingSampler


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_neither_mask_nor_padding_is_ever_drawn(text_model, temperature):
    """Both are made the favourite; without the ban they would be drawn at once."""
    bias = text_model.get_output_embeddings().bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[[MASK, 0]] += 50
    try:
        sampler = RemaskingSampler(text_model, num_steps=3, temperature=temperature)
        drawn = sampler.sample(prompts(8, PROMPT), max_new_tokens=NEW).sequences[:, PROMPT:]
        ended = replace(sampler, eos_token_id=0).sample(prompts(8, PROMPT), max_new_tokens=NEW).sequences[:, PROMPT:]
    finally:
        with torch.no_grad():
            bias.copy_(before)
    assert not ((drawn == MASK) | (drawn == 0)).any()
    assert (ended == 0).all(), "padding that ends an answer may be drawn"


def test_a_lambda_works_and_sees_quality_entropy_and_margin(model):
    seen = []

    def watch(view, budget):
        seen.append((view.quality is None, view.entropy is None, view.margin is None, view.visible_confidence is None))
        return select_top(-view.quality, view.revealed, budget)

    named = confident(model, 6, 2)
    by_hand = replace(named, remasking=watch, unmasking=lambda view, budget: select_top(view.confidence, view.masked, budget))
    ids = prompts(3, PROMPT)
    assert torch.equal(by_hand.sample(ids, max_new_tokens=NEW).sequences, named.sample(ids, max_new_tokens=NEW).sequences)
    assert set(seen) == {(False, False, False, True)}


def test_visible_confidence_is_the_models_probability_of_the_token_that_stands_there(counted):
    model, calls = counted
    views = []

    def watch(view, budget):
        views.append(view)
        return select_top(-view.visible_confidence, view.revealed, budget)

    watch.needs = frozenset({"visible_confidence"})
    sampler = RemaskingSampler(model, num_steps=6, remasking=watch, schedule=EvenSchedule(1))
    trace = sampler.sample(prompts(1, PROMPT), max_new_tokens=NEW, return_trace=True).trace
    assert calls["rows"] == [NEW] * 6
    for view, look in zip(views, trace, strict=True):
        probabilities, _ = reference.look(model, look.tokens_before[0].tolist())
        expected = [
            row[token] if revealed else 0.0
            for row, token, revealed in zip(probabilities, look.tokens_before[0].tolist(), view.revealed[0], strict=True)
        ]
        torch.testing.assert_close(view.visible_confidence[0], torch.tensor(expected))


def test_commit_confidence_is_the_probability_at_the_time_of_writing(model):
    views = []

    def watch(view, budget):
        views.append(view)
        return select_top(view.noise, view.revealed, budget)

    sampler = sampled(model, 8, 1)
    trace = replace(sampler, remasking=watch).sample(prompts(2, PROMPT), max_new_tokens=NEW, return_trace=True).trace
    expected = torch.ones(2, PROMPT + NEW)
    for view, look in zip(views, trace, strict=True):
        torch.testing.assert_close(view.commit_confidence, expected, rtol=0, atol=0)
        expected = torch.where(look.unmasked, look.confidence, expected).masked_fill(look.remasked, 1.0)


def test_rules_that_need_figures_of_the_rows_get_them(model):
    sampler = RemaskingSampler(model, num_steps=4, unmasking=EntropyUnmasking())
    trace = sampler.sample(prompts(2, PROMPT), max_new_tokens=NEW, return_trace=True).trace
    for look in trace:
        for row in range(2):
            probabilities, _ = reference.look(model, look.tokens_before[row].tolist())
            entropy = torch.special.entr(torch.tensor(probabilities)).sum(-1)
            masked = look.tokens_before[row] == MASK
            best = entropy.masked_fill(~masked, torch.inf).argsort()[: int(look.unmasked[row].sum())]
            assert sorted(best.tolist()) == look.unmasked[row].nonzero().flatten().tolist()


def test_dropout_is_off_while_sampling_and_modes_come_back():
    model = build_model(dropout=0.5)
    model.train()
    model.plain_backbone.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    sampler, ids = confident(model, 4, 1), prompts(2, PROMPT)
    first, second = (sampler.sample(ids, max_new_tokens=NEW).sequences for _ in range(2))
    assert torch.equal(first, second)
    assert [module.training for module in model.modules()] == modes

    def fail(record):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        sampler.sample(ids, max_new_tokens=NEW, on_step=fail)
    assert [module.training for module in model.modules()] == modes


def test_on_step_gets_the_records_of_the_trace_and_neither_is_made_unasked(model):
    records = []
    sampler, ids = confident(model, 3, 1), prompts(2, PROMPT)
    output = sampler.sample(ids, max_new_tokens=NEW, on_step=records.append, return_trace=True)
    assert all(one is other for one, other in itertools.zip_longest(records, output.trace))
    assert sampler.sample(ids, max_new_tokens=NEW, on_step=records.append).trace is None
    assert len(records) == 6


def test_outputs_carry_no_gradient(model):
    assert not confident(model, 3, 1).sample(prompts(1, PROMPT), max_new_tokens=3).quality.requires_grad


def test_confidence_is_the_default_order(model):
    assert RemaskingSampler(model, num_steps=2).unmasking == ConfidenceUnmasking()


def test_times_remasked_counts_what_was_taken_back(model):
    views = []

    def watch(view, budget):
        views.append(view)
        return select_top(view.noise, view.revealed, budget)

    trace = (
        replace(sampled(model, 8, 2), remasking=watch).sample(prompts(2, PROMPT), max_new_tokens=NEW, return_trace=True).trace
    )
    expected = torch.zeros(2, PROMPT + NEW, dtype=torch.long)
    for view, look in zip(views, trace, strict=True):
        assert torch.equal(view.times_remasked, expected)
        expected += look.remasked
    assert expected.max() > 1


def test_redraft_begins_anew_while_it_doubts_and_ends_where_it_does_not(model):
    """At threshold 0 a draft is one look, and the look at the whole decides; no row is doubted at 0, every one at 1."""

    def ask(quality_threshold, num_steps, **settings):
        settings = {"threshold": 0.0, "paces": (4, 3), "min_steps": 2, **settings}
        sampler = RemaskingSampler.from_preset(
            "prism-redraft", model, num_steps=num_steps, quality_threshold=quality_threshold, **settings
        )
        output = sampler.sample(prompts(3, PROMPT), max_new_tokens=NEW, return_trace=True)
        return [(look.unmasked[0].sum().item(), look.remasked[0].sum().item()) for look in output.trace], output

    trusted, output = ask(0.0, 12)
    assert trusted == [(NEW, 0), (0, 0)]
    assert output.num_forward_passes.tolist() == [2, 2, 2]
    doubted, output = ask(1.0, 12, max_remasks_per_position=9)
    # two looks at pace 4, three at pace 3, and again three: the look at step 11 would be a check with nothing left to follow
    draft = [(3, 0), (3, 0), (1, 0)]
    assert doubted == [(NEW, 0), (0, NEW), (4, 0), (3, 0), (0, NEW), *draft, (0, NEW), *draft]
    assert output.num_forward_passes.tolist() == [12, 12, 12]
    assert output.num_remasked.tolist() == [3 * NEW] * 3
    capped, _ = ask(1.0, 12)
    assert capped == [*doubted[:8], (0, 0)], "a fourth draft would have the pace of the third"
    short, output = ask(1.0, 6, min_steps=4)
    assert short == [(NEW, 0), (0, NEW), (4, 0), (3, 0)], "with less than 4 looks left no other draft begins"


@pytest.mark.parametrize("num_steps", [3, 5, 9])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
def test_a_draft_that_nothing_doubts_is_that_of_the_threshold_preset(model, num_steps, threshold):
    """Ahead of the even line neither is hurried; redraft then looks at the whole, if steps are left for another draft."""

    def ask(name, **settings):
        sampler = RemaskingSampler.from_preset(name, model, num_steps=num_steps, threshold=threshold, **settings)
        return sampler.sample(prompts(3, PROMPT), max_new_tokens=NEW, return_trace=True)

    plain, redraft = ask("threshold"), ask("prism-redraft", quality_threshold=0.0, min_steps=2)
    assert torch.equal(plain.sequences, redraft.sequences)
    for ours, theirs in zip(redraft.trace, plain.trace, strict=False):
        assert torch.equal(ours.unmasked, theirs.unmasked)
    passes = plain.num_forward_passes
    assert torch.equal(redraft.num_forward_passes, passes + (num_steps - passes > 2))


def test_redraft_keeps_its_grant_where_the_steps_would_not_reach(model):
    sampler = RemaskingSampler.from_preset(
        "prism-redraft", model, num_steps=4, threshold=1.0, quality_threshold=1.0, paces=(1,)
    )
    output = sampler.sample(prompts(2, PROMPT), max_new_tokens=NEW, return_trace=True)
    assert [look.unmasked[0].sum().item() for look in output.trace] == [2, 2, 2, 1]
    assert isinstance(sampler.schedule, RedraftSchedule)
