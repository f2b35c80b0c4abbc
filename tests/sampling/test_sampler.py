"""What holds for every sampler, and the comparison with the literal one."""

from dataclasses import replace

import pytest
import torch
from reference import sampler as reference
from small_samplers import MASK, NEW, ONE_RUN, PROMPT, confident, generators, prompts, sampled

from prism_plugin.core import (
    EvenSchedule,
    LoopSchedule,
    QualityRemasking,
    QualityThresholdRemasking,
    RandomRemasking,
    RandomUnmasking,
    RemdmConfRemasking,
    ThresholdUnmasking,
)
from prism_plugin.sampling import PRESETS, RemaskingSampler


@pytest.mark.parametrize("num_steps", [1, 4, 12])
@pytest.mark.parametrize("num_remask", [0, 2])
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
        _check_quality(ours.quality, [row for *_, row in expected])


def _check_quality(quality, expected):
    seen = [[float("nan") if one is None else one for one in row[-NEW:]] for row in expected]
    assert quality[:, :7].isnan().all()
    torch.testing.assert_close(quality[:, 7:], torch.tensor(seen), equal_nan=True)


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
        if num_remask:
            _check_quality(ours.quality, [row for *_, row in expected])
        stopped += (ours.num_forward_passes < num_steps).sum()
    assert stopped, "no row met an EOS before its last block; the case proves nothing"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("block_length", [None, 4])
def test_a_ragged_batch_equals_its_rows_with_one_generator_each(model, ragged, side, block_length):
    rows, (ids, mask) = ragged[0], ragged[1][side]
    # a threshold makes rows finish at different looks: a row's draws must not shift when others are gone
    rules = {"unmasking": ThresholdUnmasking(0.4), "temperature": 1.0, "top_p": 0.9}
    early = RemaskingSampler(model, num_steps=NEW, block_length=block_length, **rules)
    remasks = replace(early, remasking=RandomRemasking(), schedule=EvenSchedule(1))
    for sampler in (early, remasks):
        together = sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(3, 4, 5, 6))
        for number, row in enumerate(rows):
            prompt = torch.tensor([row], dtype=torch.long)
            alone = sampler.sample(prompt, max_new_tokens=NEW, generator=generators(number + 3))
            assert alone.sequences[0, len(row) :].tolist() == together.sequences[number, 7:].tolist()
            assert alone.num_forward_passes[0] == together.num_forward_passes[number]
        other = sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(7, 8, 9, 10))
        assert not torch.equal(other.sequences, together.sequences)
        if sampler is early:
            # the first rows must finish before the last, or numbers of rows in the batch could stand in for theirs
            assert together.num_forward_passes[:-1].min() < together.num_forward_passes[-1]


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


@pytest.mark.parametrize("name", sorted(ONE_RUN))
@pytest.mark.parametrize(("num_steps", "block_length"), [(1, None), (9, None), (5, 3), (12, 2)])
@pytest.mark.parametrize("num_remask", [1, 3])
def test_every_preset_keeps_what_it_must(counted, name, num_steps, block_length, num_remask):
    model, calls = counted
    settings = {"num_remask": num_remask} if "num_remask" in PRESETS[name].settings else {}
    sampler = RemaskingSampler.from_preset(name, model, num_steps=num_steps, block_length=block_length, **settings)
    for told in calls.values():
        told.clear()  # what a look needs was tried when the sampler was made
    ids = prompts(3, PROMPT)
    output = sampler.sample(ids, max_new_tokens=NEW, generator=torch.Generator().manual_seed(0), return_trace=True)
    assert torch.equal(output.sequences[:, :PROMPT], ids)
    assert not (output.sequences == MASK).any()
    looks = sum(look.looked.long() for look in output.trace)
    assert looks.max() <= num_steps
    assert sum(calls["batch"]) == output.num_forward_passes.sum()
    if sampler.look is None:
        assert torch.equal(looks, output.num_forward_passes)
        assert calls["rows"] == [
            _rows_read(look, sampler, count) for look, count in zip(output.trace, calls["rows"], strict=True)
        ]
    _check_trace(output, ids, sampler, num_remask if settings else NEW)


def _rows_read(look, sampler, count):
    """Rows of the LM head at masks and, where a rule reads them, at tokens of each row's block; `count` where nobody can say.

    The block of a row that looked and changed nothing is not known from outside.
    """
    if not ((look.unmasked | look.remasked).any(-1) | ~look.looked).all() and sampler.block_length:
        return count
    block = _block_of_row(look, sampler.block_length)
    reads = block & ((look.tokens_before == MASK) | ("visible" in sampler.reads))
    return int(reads.sum())


def _block_of_row(look, block_length):
    """Positions of the block that each row works on: the block of its leftmost change, for rows that look."""
    changed = look.unmasked | look.remasked
    if block_length is None:
        return (torch.arange(PROMPT + NEW) >= PROMPT) & look.looked.unsqueeze(-1)
    size = block_length
    block = (torch.arange(PROMPT + NEW) - PROMPT).div(size, rounding_mode="floor")
    current = torch.where(changed, block, -1).amax(-1, keepdim=True)
    return (block == current) & look.looked.unsqueeze(-1)


def _check_trace(output, ids, sampler, num_remask):
    edits = sampler.editing is not None
    tokens = torch.cat((ids, torch.full((3, NEW), MASK)), dim=1)
    for number, look in enumerate(output.trace):
        assert look.step == number
        assert torch.equal(look.tokens_before, tokens)
        generated = torch.arange(PROMPT + NEW) >= PROMPT
        assert edits or not (look.unmasked & (tokens != MASK)).any()
        assert not (look.remasked & ((tokens == MASK) | ~generated)).any()
        assert (look.remasked.sum(-1) <= num_remask).all()
        changed = look.tokens_after != tokens
        assert torch.equal(changed, look.unmasked | look.remasked)
        assert not (look.unmasked | look.remasked)[~look.looked].any()
        assert look.confidence.isnan().logical_not()[look.unmasked].all()
        if look.quality is not None:
            judged = (tokens != MASK) & generated & look.looked.unsqueeze(-1)
            assert torch.equal(~look.quality.isnan(), judged)
        tokens = look.tokens_after
    assert torch.equal(tokens, output.sequences)
    assert torch.equal(sum(look.num_forwards for look in output.trace), output.num_forward_passes)
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


def test_chance_that_nobody_reads_is_not_drawn(model):
    for sampler, drawn in ((confident(model, 3, 1), False), (sampled(model, 3), True)):
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        sampler.sample(prompts(2, PROMPT), max_new_tokens=NEW, generator=generator)
        assert torch.equal(generator.get_state(), before) != drawn


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


def test_a_rule_of_chance_is_asked_again_where_a_sure_one_is_done(model):
    schedule = LoopSchedule(num_remask=8, draft_share=0.25)
    chance = RemaskingSampler(model, num_steps=8, remasking=RemdmConfRemasking(scale=0.01), schedule=schedule)
    sure = RemaskingSampler(model, num_steps=8, remasking=QualityThresholdRemasking(0.0), schedule=schedule)
    looks = [sampler.sample(prompts(3, PROMPT), max_new_tokens=NEW).num_forward_passes.tolist() for sampler in (chance, sure)]
    assert looks == [[7, 7, 7], [3, 3, 3]]  # the eighth could only refill, and there is nothing to


def test_a_blind_rule_computes_only_the_rows_that_it_writes(counted):
    model, calls = counted
    sampler = RemaskingSampler(model, num_steps=4, unmasking=RandomUnmasking(), temperature=1.0)
    outputs = []
    for watched in (False, True):
        calls["rows"].clear()
        output = sampler.sample(prompts(2, PROMPT), max_new_tokens=8, generator=generators(0, 1), return_trace=watched)
        outputs.append(output.sequences)
        assert calls["rows"] == ([16, 12, 8, 4] if watched else [4, 4, 4, 4])
    assert torch.equal(*outputs)
