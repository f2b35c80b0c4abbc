"""What holds for every sampler, and the comparison with the literal one."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import MASK, build_model, generators, prompts
from reference import sampler as reference

from prism_plugin.core import (
    ConfidenceUnmasking,
    EntropyUnmasking,
    EvenSchedule,
    LoopSchedule,
    QualityRemasking,
    QualityThresholdRemasking,
    RandomRemasking,
    RandomUnmasking,
    ThresholdUnmasking,
    select_top,
)
from prism_plugin.sampling import PRESETS, RemaskingSampler

PROMPT, NEW = 4, 7


def confident(model, num_steps, num_remask=0, **settings):
    rules = {"remasking": QualityRemasking(), "schedule": EvenSchedule(num_remask)} if num_remask else {}
    return RemaskingSampler(model, num_steps=num_steps, **rules, **settings)


def sampled(model, num_steps, num_remask=2, **settings):
    rules = {"unmasking": RandomUnmasking(), "remasking": QualityRemasking(), "schedule": EvenSchedule(num_remask)}
    return RemaskingSampler(model, num_steps=num_steps, temperature=1.0, **rules, **settings)


@pytest.mark.parametrize("num_steps", [1, 3, 7, 12])
@pytest.mark.parametrize("num_remask", [0, 1, 3])
@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_ragged_batch_equals_the_literal_sampler(model, ragged, num_steps, num_remask, block_length, side):
    rows, layouts = ragged
    ids, mask = layouts[side]
    num_steps = num_steps if block_length is None else num_steps + 2
    ours = confident(model, num_steps, num_remask, block_length=block_length).sample(ids, mask, max_new_tokens=NEW)
    expected = [
        reference.sample(model, row, max_new_tokens=NEW, num_steps=num_steps, num_remask=num_remask, block_length=block_length)
        for row in rows
    ]
    assert torch.equal(ours.sequences[:, :7], ids)
    assert ours.sequences[:, 7:].tolist() == [tokens[-NEW:] for tokens, *_ in expected]
    assert ours.num_forward_passes.tolist() == [forwards for _, forwards, *_ in expected]
    assert ours.num_remasked.tolist() == [remasked for _, _, remasked, _ in expected]
    assert (ours.quality is None) == (num_remask == 0)
    if num_remask:
        assert ours.quality[:, :7].isnan().all()
        seen = [[float("nan") if one is None else one for one in row[-NEW:]] for *_, row in expected]
        torch.testing.assert_close(ours.quality[:, 7:], torch.tensor(seen), equal_nan=True)


@pytest.mark.parametrize(("num_steps", "num_remask"), [(4, 0), (6, 2), (9, 1)])
def test_eos_ends_a_row_as_in_the_literal_sampler(model, ragged, num_steps, num_remask):
    rows, layouts = ragged
    plain = confident(model, num_steps, num_remask, block_length=2)
    free = plain.sample(*layouts["left"], max_new_tokens=NEW).sequences[:, 7:]
    stopped = 0
    for eos in free.unique().tolist():
        ours = replace(plain, eos_token_id=eos).sample(*layouts["left"], max_new_tokens=NEW)
        settings = {"max_new_tokens": NEW, "num_steps": num_steps, "num_remask": num_remask, "block_length": 2}
        expected = [reference.sample(model, row, **settings, eos_token_id=eos, fill_id=0) for row in rows]
        assert ours.sequences[:, 7:].tolist() == [tokens[-NEW:] for tokens, *_ in expected]
        assert ours.num_forward_passes.tolist() == [forwards for _, forwards, *_ in expected]
        stopped += (ours.num_forward_passes < num_steps).sum()
    assert stopped, "no row met an EOS before its last block; the case proves nothing"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_ragged_batch_equals_its_rows_with_one_generator_each(model, ragged, side):
    rows, layouts = ragged
    # a threshold makes rows finish at different looks, so that a row's draws would shift if they depended on the others
    rules = {"unmasking": ThresholdUnmasking(0.5), "remasking": RandomRemasking(), "schedule": EvenSchedule(1)}
    sampler = RemaskingSampler(model, num_steps=6, temperature=1.0, top_p=0.9, block_length=4, **rules)
    ids, mask = layouts[side]
    together = sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(1, 2, 3, 4))
    for number, row in enumerate(rows):
        alone = sampler.sample(torch.tensor([row], dtype=torch.long), max_new_tokens=NEW, generator=generators(number + 1))
        assert alone.sequences[0, len(row) :].tolist() == together.sequences[number, 7:].tolist()
        assert alone.num_forward_passes[0] == together.num_forward_passes[number]
    other = sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(5, 6, 7, 8))
    assert not torch.equal(other.sequences, together.sequences)


def test_row_order_does_not_matter(model, ragged):
    (ids, mask), order = ragged[1]["right"], torch.tensor([2, 0, 3, 1])
    sampler = sampled(model, 5)
    straight = sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(0, 1, 2, 3))
    mixed = sampler.sample(ids[order], mask[order], max_new_tokens=NEW, generator=generators(2, 0, 3, 1))
    assert torch.equal(straight.sequences[order], mixed.sequences)
    torch.testing.assert_close(straight.quality[order], mixed.quality, equal_nan=True)


def test_the_same_generator_gives_the_same_output_and_another_does_not(model):
    sampler, ids = sampled(model, 5), prompts(3, PROMPT)
    one, same, other = (
        sampler.sample(ids, max_new_tokens=NEW, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(one.sequences, same.sequences)
    assert not torch.equal(one.sequences, other.sequences)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize(("num_steps", "block_length"), [(1, None), (5, None), (9, None), (5, 3), (12, 2)])
@pytest.mark.parametrize("num_remask", [1, 3])
def test_every_preset_keeps_what_it_must(counted, name, num_steps, block_length, num_remask):
    model, calls = counted
    settings = {"num_remask": num_remask} if "num_remask" in PRESETS[name].settings else {}
    sampler = RemaskingSampler.from_preset(name, model, num_steps=num_steps, block_length=block_length, **settings)
    ids = prompts(3, PROMPT)
    output = sampler.sample(ids, max_new_tokens=NEW, generator=torch.Generator().manual_seed(0), return_trace=True)
    assert torch.equal(output.sequences[:, :PROMPT], ids)
    assert not (output.sequences == MASK).any()
    assert output.num_forward_passes.max() <= num_steps
    assert sum(calls["batch"]) == output.num_forward_passes.sum()
    assert len(calls["batch"]) == len(output.trace) == output.num_forward_passes.max()
    assert calls["rows"] == [
        int(((look.tokens_before == MASK) & _block_of_row(look, block_length)).sum()) for look in output.trace
    ]
    _check_trace(output, ids, num_remask if settings else 0)


def _block_of_row(look, block_length):
    """Positions of the block that each row works on: the block of its leftmost change, for rows that look."""
    changed = look.unmasked | look.remasked
    size = block_length or NEW
    block = (torch.arange(PROMPT + NEW) - PROMPT).div(size, rounding_mode="floor")
    current = torch.where(changed, block, -1).amax(-1, keepdim=True)
    return (block == current) & look.looked.unsqueeze(-1)


def _check_trace(output, ids, num_remask):
    tokens = torch.cat((ids, torch.full((3, NEW), MASK)), dim=1)
    for number, look in enumerate(output.trace):
        assert look.step == number
        assert torch.equal(look.tokens_before, tokens)
        generated = torch.arange(PROMPT + NEW) >= PROMPT
        assert not (look.unmasked & (tokens != MASK)).any()
        assert not (look.remasked & ((tokens == MASK) | ~generated)).any()
        assert (look.remasked.sum(-1) <= num_remask).all()
        assert torch.equal(look.tokens_after != tokens, look.unmasked | look.remasked)
        assert not (look.unmasked | look.remasked)[~look.looked].any()
        assert look.confidence.isnan().logical_not()[look.unmasked].all()
        if look.quality is not None:
            judged = (tokens != MASK) & generated & look.looked.unsqueeze(-1)
            assert torch.equal(~look.quality.isnan(), judged)
        tokens = look.tokens_after
    assert torch.equal(tokens, output.sequences)
    assert torch.equal(sum(look.looked.long() for look in output.trace), output.num_forward_passes)
    assert torch.equal(sum(look.remasked.sum(-1) for look in output.trace), output.num_remasked)


def test_remasking_does_happen(model):
    for name in ("prism", "prism-confidence", "prism-threshold"):
        output = RemaskingSampler.from_preset(name, model, num_steps=6).sample(prompts(3, PROMPT), max_new_tokens=NEW)
        assert (output.num_remasked > 0).all(), name


def test_without_a_rule_that_needs_it_no_quality_is_computed(model):
    calls = []
    hook = model.quality_head.register_forward_hook(lambda *_: calls.append(1))
    confident(model, 3).sample(prompts(2, PROMPT), max_new_tokens=NEW)
    assert not calls
    confident(model, 3, 1).sample(prompts(2, PROMPT), max_new_tokens=NEW)
    hook.remove()
    assert len(calls) == 3


def test_more_steps_than_tokens_cost_no_more_forwards(counted):
    model, calls = counted
    output = confident(model, 50).sample(prompts(2, PROMPT), max_new_tokens=NEW)
    assert output.num_forward_passes.tolist() == [NEW, NEW]
    assert calls["batch"] == [2] * NEW


def test_a_threshold_finishes_early_and_finished_rows_leave_the_batch(counted):
    model, calls = counted
    sampler = RemaskingSampler(model, num_steps=NEW, unmasking=ThresholdUnmasking(0.5))
    output = sampler.sample(prompts(8, PROMPT), max_new_tokens=NEW)
    assert output.num_forward_passes.min() < output.num_forward_passes.max() <= NEW
    assert calls["batch"] == [int((output.num_forward_passes > look).sum()) for look in range(len(calls["batch"]))]
    at_once = RemaskingSampler(model, num_steps=NEW, unmasking=ThresholdUnmasking(0.0))
    assert at_once.sample(prompts(2, PROMPT), max_new_tokens=NEW).num_forward_passes.tolist() == [1, 1]


def test_a_full_canvas_is_looked_at_without_the_lm_head_until_nothing_is_taken_back(counted):
    model, calls = counted
    rules = {"remasking": QualityThresholdRemasking(0.0), "schedule": LoopSchedule(num_remask=2, draft_share=0.5)}
    output = RemaskingSampler(model, num_steps=6, **rules).sample(prompts(1, PROMPT), max_new_tokens=NEW)
    assert output.num_forward_passes.tolist() == [4]  # three to draft, one that finds nothing to take back
    assert len(calls["batch"]) == 4
    assert calls["rows"] == [7, 4, 2, 0]


def test_a_loop_drafts_and_then_corrects_at_every_look(model):
    rules = {"remasking": QualityRemasking(), "schedule": LoopSchedule(num_remask=2, draft_share=0.5)}
    output = RemaskingSampler(model, num_steps=6, **rules).sample(prompts(2, PROMPT), max_new_tokens=NEW, return_trace=True)
    assert output.num_forward_passes.tolist() == [6, 6]
    assert [look.remasked.sum(-1).tolist() for look in output.trace] == [[0, 0]] * 3 + [[2, 2]] * 2 + [[0, 0]]


def test_a_cap_per_position_holds_and_needs_other_positions(model):
    capped = sampled(model, 12, 3, max_remasks_per_position=1)
    trace = capped.sample(prompts(4, PROMPT), max_new_tokens=NEW, generator=generators(0, 1, 2, 3), return_trace=True).trace
    assert sum(look.remasked.long() for look in trace).max() == 1
    free = sampled(model, 12, 3).sample(
        prompts(4, PROMPT), max_new_tokens=NEW, generator=generators(0, 1, 2, 3), return_trace=True
    )
    assert sum(look.remasked.long() for look in free.trace).max() > 1


@pytest.mark.parametrize("block_length", [None, 3])
def test_infill_equals_sample_on_an_equal_canvas(model, ragged, block_length):
    ids, mask = ragged[1]["left"]
    sampler = sampled(model, 6, 1, block_length=block_length)
    sample = sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(0, 1, 2, 3))
    canvas = torch.cat((ids, torch.full((4, NEW), MASK)), dim=1)
    present = torch.cat((mask, torch.ones(4, NEW, dtype=torch.long)), dim=1)
    infill = sampler.infill(canvas, present, generator=generators(0, 1, 2, 3))
    assert torch.equal(sample.sequences, infill.sequences)
    assert torch.equal(sample.num_forward_passes, infill.num_forward_passes)
    torch.testing.assert_close(sample.quality, infill.quality, equal_nan=True)


def test_infill_fills_masks_anywhere_and_nothing_else(counted):
    model, calls = counted
    ids = prompts(3, 12)
    editable = torch.zeros(3, 12, dtype=torch.bool)
    editable[0, [0, 3, 4, 11]] = editable[1, [5]] = True
    canvas = ids.masked_fill(editable, MASK)
    # row 0 has masks in chunks 0, 1 and 3 of four positions each: three blocks; the second chunk of row 1 does not exist
    output = confident(model, 4, block_length=4).infill(canvas, return_trace=True)
    assert not (output.sequences == MASK).any()
    assert torch.equal(output.sequences[~editable], ids[~editable])
    assert torch.equal(output.sequences[2], ids[2])
    assert output.num_forward_passes.tolist() == [4, 1, 0]
    assert [look.unmasked[0].nonzero().flatten().tolist() for look in output.trace] in (
        [[0], [3], [4], [11]],
        [[3], [0], [4], [11]],
    )
    assert calls["batch"] == [2, 1, 1, 1]
    alone = confident(model, 4, block_length=4).infill(canvas[1:2])
    assert torch.equal(alone.sequences[0], output.sequences[1])


def test_eos_in_an_infill_pads_only_what_may_be_generated(model):
    ids = prompts(1, 12)
    ids[0, [2, 3, 6, 7, 10]] = MASK
    plain = confident(model, 5, block_length=2)
    eos = int(plain.infill(ids).sequences[0, 2])
    output = replace(plain, eos_token_id=eos).infill(ids)
    assert output.sequences[0, 2] == eos
    assert output.sequences[0, [3, 6, 7, 10]].tolist() == [0] * 4
    kept = [0, 1, 4, 5, 8, 9, 11]
    assert torch.equal(output.sequences[0, kept], ids[0, kept])


def test_steps_are_shared_over_blocks_remainder_first(model):
    output = confident(model, 5, block_length=3).sample(prompts(1, PROMPT), max_new_tokens=9, return_trace=True)
    revealed = [look.unmasked[0, PROMPT:].view(3, 3).sum(-1).tolist() for look in output.trace]
    assert revealed == [[2, 0, 0], [1, 0, 0], [0, 2, 0], [0, 1, 0], [0, 0, 3]]


def test_remasking_stays_in_the_active_block(model):
    output = confident(model, 12, 2, block_length=4).sample(prompts(2, PROMPT), max_new_tokens=12, return_trace=True)
    blocks = [
        look.remasked[:, PROMPT:].view(2, 3, 4).any(-1) | look.unmasked[:, PROMPT:].view(2, 3, 4).any(-1)
        for look in output.trace
    ]
    assert [block.nonzero()[:, 1].tolist() for block in blocks] == [[0, 0]] * 4 + [[1, 1]] * 4 + [[2, 2]] * 4
    assert sum(look.remasked.sum() for look in output.trace) > 0


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
