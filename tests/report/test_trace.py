"""What the page is given, against the records read one position and one look at a time."""

from dataclasses import replace

import pytest
import torch
from small_traces import ATTENTION_MASK, IDS, MASK, sample_two, sampler_of, tokenizer_of
from tokenizers import decoders

from prism_plugin.core import BelowRemasking, QualityThresholdRemasking, ThresholdEditing
from prism_plugin.decoding import GuidedLook
from prism_plugin.errors import ConfigurationError
from prism_plugin.report import trace_generation
from prism_plugin.report.pieces import printable, token_pieces
from prism_plugin.report.trace import doubt_below
from prism_plugin.sampling import RemaskingSampler


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"block_length": 2}, {"remasking": QualityThresholdRemasking(0.4)}])
def test_looks_say_what_the_records_say(model, row, settings):
    output = sample_two(model, **settings)
    generation = trace_generation(output, row, sampler_of(model, **settings), attention_mask=ATTENTION_MASK)
    own = ATTENTION_MASK[row].nonzero().squeeze(-1).tolist()
    records = [record for record in output.trace if record.looked[row]]
    texts = {token: model.tokenizer.decode([token]) for token in range(32)}
    assert [generation.pieces[piece] for piece in generation.start] == [texts[int(IDS[row, at])] for at in own]
    assert generation.editable == [number for number, at in enumerate(own) if IDS[row, at] == MASK]
    assert len(generation.looks) == len(records) == int(output.num_forward_passes[row])
    for look, record in zip(generation.looks, records, strict=True):
        filled, taken_back, quality = [], [], []
        for number, at in enumerate(own):
            if record.unmasked[row, at]:
                token, confidence = int(record.tokens_after[row, at]), float(record.confidence[row, at])
                filled.append([number, texts[token], round(1000 * confidence)])
            if record.remasked[row, at]:
                taken_back.append(number)
            if number in generation.editable:
                value = float(record.quality[row, at])
                quality.append(-1 if value != value else round(1000 * value))
        assert [[at, generation.pieces[piece], confidence] for at, piece, confidence in look.filled] == filled
        assert look.taken_back == taken_back
        assert look.quality == quality
        assert look.padded == []
    assert generation.final_text() == model.tokenizer.decode(output.sequences[row, own])
    figures = generation.figures()
    assert figures["num_remasked"] == int(output.num_remasked[row])
    assert figures["num_remasked"] > 0 or settings
    assert figures["num_forward_passes"] == int(output.num_forward_passes[row])
    assert figures["num_generated"] == len(generation.editable)


def test_figures_count_positions_and_changes(model):
    output = sample_two(model)
    remasked = torch.stack([record.remasked[0] for record in output.trace]).sum(0)
    first = {}
    for record in output.trace:
        for at in record.unmasked[0].nonzero().squeeze(-1).tolist():
            first.setdefault(at, int(record.tokens_after[0, at]))
    figures = trace_generation(output, 0, sampler_of(model)).figures()
    assert figures["num_positions_remasked"] == int((remasked > 0).sum())
    assert figures["num_changed"] == sum(int(output.sequences[0, at]) != token for at, token in first.items())


def test_an_overwritten_token_is_shown_with_what_stood_there_and_why_it_went(model):
    settings = {"editing": ThresholdEditing(0.05), "remasking": BelowRemasking(0.4, "visible_confidence")}
    output = sample_two(model, **settings)
    generation = trace_generation(output, 0, sampler_of(model, **settings))
    records = [record for record in output.trace if record.looked[0]]
    texts, edits = {token: model.tokenizer.decode([token]) for token in range(32)}, 0
    for look, record in zip(generation.looks, records, strict=True):
        expected, changed = [], []
        for place in range(9):
            before, after = int(record.tokens_before[0, place]), int(record.tokens_after[0, place])
            if record.unmasked[0, place] and before != MASK and before != after:
                confidence = float(record.scores["best_visible_confidence"][0, place])
                expected.append([place, texts[after], texts[before], round(1000 * confidence)])
            if record.remasked[0, place] or (record.unmasked[0, place] and before not in (MASK, after)):
                changed.append(place)
        pieces = generation.pieces
        assert [[at, pieces[new], pieces[old], sure] for at, new, old, sure in look.overwritten] == expected
        assert [place for place, _ in look.why] == changed
        for place, words in look.why:
            own, best = (float(record.scores[name][0, place]) for name in ("visible_confidence", "best_visible_confidence"))
            assert words == f"visible confidence {own:.3f}, best visible confidence {best:.3f}"
        assert not {at for at, *_ in look.filled} & {at for at, *_ in look.overwritten}
        edits += len(expected)
    assert edits > 0
    assert generation.figures()["num_overwritten"] == edits
    assert generation.final_text() == model.tokenizer.decode(output.sequences[0])


def test_forwards_are_counted_where_a_look_takes_several(model):
    sampler = RemaskingSampler(model, num_steps=6, look=GuidedLook(1.0))
    output = sampler.infill(IDS, ATTENTION_MASK, return_trace=True)
    figures = trace_generation(output, 0, sampler).figures()
    assert figures["num_forward_passes"] == 2 * figures["num_looks"] == int(output.num_forward_passes[0])


def test_padding_after_the_end_is_told_apart(model):
    sampler = RemaskingSampler(model, num_steps=4, block_length=1, eos_token_id=1)
    # every token but the end's is forbidden by its own logit, so the first block is the end
    with torch.no_grad():
        bias = model.get_output_embeddings().bias
        before = bias.clone()
        bias.copy_(torch.full_like(bias, -1e4).index_fill(0, torch.tensor([1]), 0.0))
        output = sampler.infill(torch.tensor([[5, MASK, MASK, MASK]]), return_trace=True)
        bias.copy_(before)
    (look,) = trace_generation(output, 0, sampler).looks
    assert [position for position, *_ in look.filled] == [1]
    assert [position for position, _ in look.padded] == [2, 3]
    assert look.quality is None  # no rule reads it


def test_a_grid_needs_whole_lines(model):
    output = sample_two(model)
    assert trace_generation(output, 0, sampler_of(model), columns=3).columns == 3
    with pytest.raises(ConfigurationError, match="a grid of 4 columns needs rows of a multiple of as many tokens, found 9"):
        trace_generation(output, 0, sampler_of(model), columns=4)


def test_a_rule_without_a_name_is_shown_and_a_request_without_a_trace_is_refused(model):
    sampler = sampler_of(model, unmasking=lambda view, budget: view.masked)
    generation = trace_generation(sampler.infill(IDS, ATTENTION_MASK, return_trace=True), 0, sampler)
    assert "lambda" in generation.settings["unmasking"]
    assert generation.settings["schedule"].startswith("EvenSchedule(num_remask=2")
    with pytest.raises(ConfigurationError, match="found no trace; pass `return_trace=True` to the sampler"):
        trace_generation(sampler.infill(IDS, ATTENTION_MASK), 0, sampler)


def test_doubt_begins_where_the_rule_takes_back(model):
    sampler = sampler_of(model)
    assert doubt_below(sampler) == 0.5
    assert doubt_below(replace(sampler, remasking=QualityThresholdRemasking(0.8))) == 0.8
    assert doubt_below(RemaskingSampler(model, num_steps=2)) == 0.5


@pytest.mark.parametrize(
    ("vocabulary", "decoder", "expected"),
    [
        (("[UNK]", "cat", "##s", "sat", "[MASK]"), decoders.WordPiece(cleanup=False), [" cat", "s", " sat", " [MASK]"]),
        (("<unk>", "\u2581cat", "s", "\u2581", "[MASK]"), decoders.Metaspace(), [" cat", "s", " ", "[MASK]"]),
        (("<unk>", "\u0120cat", "s", "\u010a", "[MASK]"), decoders.ByteLevel(), [" cat", "s", "\n", "[MASK]"]),
    ],
    ids=["wordpiece", "sentencepiece", "bytes"],
)
def test_pieces_keep_the_spaces_of_every_kind_of_tokenizer(vocabulary, decoder, expected):
    pieces = token_pieces(tokenizer_of(vocabulary, decoder), [4, 1, 2, 3, 1])
    assert [pieces[token] for token in (1, 2, 3, 4)] == expected


def test_a_token_that_adds_no_text_is_shown_by_its_name():
    tokenizer = tokenizer_of(("[UNK]", "cat", "</w>", "[MASK]"), decoders.BPEDecoder(suffix="</w>"))
    assert token_pieces(tokenizer, [2]) == {2: "</w>"}


def test_pieces_without_a_tokenizer_are_numbers():
    assert token_pieces(None, [7, 31, 7]) == {7: " 7", 31: " 31"}


def test_what_could_move_a_cursor_or_break_a_file_is_replaced():
    assert printable("a\x1b[2Jb\r\x7f\x9b\udcff\n\tc") == "a\u241b[2Jb\u240d\u2421\ufffd\ufffd\n\tc"
