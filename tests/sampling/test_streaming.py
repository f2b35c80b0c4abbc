"""Streamers: the calls that transformers' own diffusion models make, with transformers' own streamers."""

import pytest
import torch
from small_samplers import MASK, prompts, sampled
from transformers import TextDiffusionStreamer, TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

from prism_plugin.core import RandomUnmasking, ThresholdEditing
from prism_plugin.errors import SamplingError
from prism_plugin.sampling import RemaskingSampler

SAVE, CLEAR, YELLOW, PLAIN = "\x1b7", "\x1b8\x1b[J", "\x1b[33m", "\x1b[0m"


class Log(BaseStreamer):
    """A streamer that notes what it is told."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        assert value.dtype == torch.int64
        assert value.device.type == "cpu"
        self.calls.append(("put", value.tolist()))

    def put_draft(self, value):
        self.calls.append(("draft", value.tolist()))

    def end(self):
        self.calls.append(("end", None))


def seeded():
    return torch.Generator().manual_seed(0)


def test_one_block_is_drafted_at_every_look_and_put_once(model):
    log, ids = Log(), prompts(1, 4)
    output = sampled(model, 6).sample(ids, max_new_tokens=7, generator=seeded(), return_trace=True, streamer=log)
    assert int(output.num_remasked) > 0
    drafts = [("draft", record.tokens_after[:, 4:].tolist()) for record in output.trace]
    assert log.calls == [("put", ids.tolist()), *drafts, ("put", output.sequences[:, 4:].tolist()), ("end", None)]


def test_a_block_is_put_when_the_next_one_is_looked_at(model):
    log, ids = Log(), prompts(1, 4)
    sampler = sampled(model, 8, block_length=3)
    output = sampler.sample(ids, max_new_tokens=8, generator=seeded(), return_trace=True, streamer=log)
    expected, confirmed = [("put", ids.tolist())], 4
    for record in output.trace:
        start = 4 + (record.confidence[0, 4:].isfinite().nonzero().min().item() // 3) * 3  # of the block that is filled
        if start > confirmed:
            expected.append(("put", output.sequences[:, confirmed:start].tolist()))
            confirmed = start
        expected.append(("draft", record.tokens_after[:, confirmed:].tolist()))
    expected += [("put", output.sequences[:, confirmed:].tolist()), ("end", None)]
    assert log.calls == expected
    assert [len(value[0]) for name, value in log.calls if name == "put"] == [4, 3, 3, 2]


@pytest.mark.parametrize("blocks", ["active", "begun"])
def test_overwritten_tokens_are_drafts_until_nothing_more_changes(model, blocks):
    log, ids = Log(), prompts(1, 4)
    rules = {"unmasking": RandomUnmasking(), "editing": ThresholdEditing(0.1, blocks), "temperature": 1.0}
    sampler = RemaskingSampler(model, num_steps=16, block_length=3, **rules)
    output = sampler.sample(ids, max_new_tokens=8, generator=seeded(), return_trace=True, streamer=log)
    assert any((record.unmasked & (record.tokens_before != MASK)).any() for record in output.trace)
    assert log.calls[-1] == ("end", None)
    puts = [value[0] for name, value in log.calls if name == "put"]
    assert [token for part in puts for token in part] == output.sequences[0].tolist()
    assert [len(part) for part in puts] == ([4, 3, 3, 2] if blocks == "active" else [4, 8])
    told = 0
    for name, value in log.calls:  # a draft ends with the canvas, and no put token changes afterwards
        told += len(value[0]) if name == "put" else 0
        if name == "draft":
            assert told + len(value[0]) == 12


def test_padding_is_not_told_and_what_stands_between_masks_is(model):
    log = Log()
    ids = torch.tensor([[0, 0, MASK, 5, MASK, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    output = RemaskingSampler(model, num_steps=2).infill(ids, mask, return_trace=True, streamer=log)
    puts = [value for name, value in log.calls if name == "put"]
    assert puts == [[[]], [output.sequences[0, 2:].tolist()]]  # it begins with a mask: nothing is confirmed before
    assert ("draft", output.trace[0].tokens_after[:, 2:].tolist()) in log.calls


def test_the_real_streamer_draws_every_draft_over_the_last(text_model, capsys):
    tokenizer = text_model.tokenizer
    sampler = sampled(text_model, 5)
    ids = tokenizer("the cat ", return_tensors="pt")["input_ids"]
    streamer = TextDiffusionStreamer(tokenizer)
    output = sampler.sample(ids, max_new_tokens=6, generator=seeded(), return_trace=True, streamer=streamer)
    printed = capsys.readouterr().out
    drafts = [f"{SAVE}{YELLOW}{tokenizer.decode(record.tokens_after[0, 8:])}{PLAIN}" for record in output.trace]
    assert any("[MASK]" in draft for draft in drafts)
    # TextStreamer prints whole words as they are put; all of its lines together are the text.
    start, end = printed.index(SAVE), printed.rindex(CLEAR)
    assert printed[:start] == "the cat "
    assert printed[start:end] == CLEAR.join(drafts)
    assert printed[end:].removeprefix(CLEAR) == tokenizer.decode(output.sequences[0, 8:]) + "\n"


@pytest.mark.parametrize("kind", [TextDiffusionStreamer, TextStreamer])
def test_generate_streams_one_prompt_and_the_prompt_can_be_skipped(text_model, capsys, kind):
    sampler = RemaskingSampler(text_model, num_steps=3)
    streamer = kind(text_model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    (answer,) = sampler.generate(["hello"], max_new_tokens=6, streamer=streamer)
    printed = capsys.readouterr().out
    assert printed.split(CLEAR)[-1] == answer + "\n"
    assert "hello" not in printed


def test_a_streamer_without_drafts_is_given_the_text(text_model):
    streamer = TextIteratorStreamer(text_model.tokenizer, timeout=10)
    (answer,) = RemaskingSampler(text_model, num_steps=4, block_length=2).generate(["ab"], max_new_tokens=6, streamer=streamer)
    assert "".join(streamer) == "ab" + answer


class TakesLogits(Log):
    _takes_logits = True


@pytest.mark.parametrize(
    ("streamer", "rows", "words"),
    [
        (Log(), 2, "`streamer` follows one row, got 2; sample the rows one by one, or use `on_step`"),
        (print, 1, "must have `put` and `end`, as transformers' streamers have, but builtin_function_or_method lacks `put`"),
        (TakesLogits(), 1, "must take tokens, but TakesLogits takes logits, which are computed for masked positions alone"),
    ],
)
def test_a_streamer_that_cannot_be_served_is_refused_before_any_forward(counted, streamer, rows, words):
    model, calls = counted
    with pytest.raises(SamplingError, match=words):
        RemaskingSampler(model, num_steps=2).sample(prompts(rows, 3), max_new_tokens=2, streamer=streamer)
    assert calls["batch"] == []
