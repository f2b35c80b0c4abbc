"""The canvas in a terminal, against the records read position by position; and no two states look alike."""

import io

import pytest
import torch
from rich.console import Console
from rich.style import Style
from small_traces import ATTENTION_MASK, IDS, MASK, sample_two, tokenizer_of
from tokenizers import decoders

from prism_plugin.report.terminal import MARKS, TerminalCanvas
from prism_plugin.sampling import StepRecord


def canvas_of(model, ids=IDS, mask=ATTENTION_MASK, columns=(None, None), doubt_below=0.5):
    return TerminalCanvas(
        ids, mask, columns=columns, titles=["text 1", "text 2"] if len(ids) > 1 else [""], tokenizer=model.tokenizer,
        mask_token_id=MASK, num_steps=6, doubt_below=doubt_below,
    )  # fmt: skip


def state_of(record, row, at, doubt_below):
    if IDS[row, at] != MASK:
        return "given"
    if record.remasked[row, at]:
        return "taken"
    if record.unmasked[row, at]:
        return "filled"
    if record.tokens_after[row, at] == MASK:
        return "masked"
    return "doubted" if float(record.quality[row, at]) < doubt_below else "kept"


def shown(record, row, doubt_below):
    """[state, letter] of each of the row's own positions, read from a record."""
    own = ATTENTION_MASK[row].nonzero().squeeze(-1).tolist()
    states = [state_of(record, row, at, doubt_below) for at in own]
    tokens = [record.tokens_before if state == "taken" else record.tokens_after for state in states]
    letters = ["[PAD]", "[EOS]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz .", "[MASK]"]
    return [(state, letters[int(of[row, at])]) for state, of, at in zip(states, tokens, own, strict=True)]


PLAIN = {"given": "{}", "masked": "_", "filled": "[{}]", "kept": "{}", "doubted": "?{}?", "taken": "~{}~"}
STYLED = {
    "given": "\x1b[2m{}\x1b[0m", "masked": "\x1b[2m\u2591\x1b[0m", "filled": "\x1b[1;7;32m{}\x1b[0m", "kept": "{}",
    "doubted": "\x1b[4;33m{}\x1b[0m", "taken": "\x1b[9;31m{}\x1b[0m",
}  # fmt: skip


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_each_look_is_drawn_as_the_record_says(model, share):
    trace = sample_two(model).trace
    doubt_below = float(torch.stack([record.quality for record in trace]).nanquantile(share))
    canvas = canvas_of(model, doubt_below=doubt_below)
    seen = set()
    for record in trace:
        looked = canvas.update(record)
        assert looked == record.looked.nonzero().squeeze(-1).tolist()
        console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="standard")
        console.print(canvas.styled())
        lines = console.file.getvalue().splitlines()
        for row in looked:
            cells = shown(record, row, doubt_below)
            seen |= {state for state, _ in cells}
            count = [sum(state == name for state, _ in cells) for name in ("filled", "taken", "masked", "doubted")]
            filled, taken, masked, doubted = count
            headline = f"look {record.step + 1} of at most 6: {filled} filled, {taken} taken back, {masked + taken} masked"
            headline += f", {doubted} doubted"
            plain = "".join(PLAIN[state].format(letter) for state, letter in cells)
            assert canvas.plain(row) == f"text {row + 1}, {headline} | {plain}"
            place = next(number for number, line in enumerate(lines) if f"text {row + 1}" in line)
            assert headline in lines[place]
            assert lines[place + 1].strip() == "".join(STYLED[state].format(letter) for state, letter in cells)
    assert seen == MARKS.keys() - {"padding", "overwritten"}


def test_no_two_states_look_alike():
    without_color = {name: str(Style.parse(mark.style).without_color) for name, mark in MARKS.items()}
    assert without_color.pop("masked") == without_color["given"]  # these two differ in their sign
    assert len(set(without_color.values())) == len(without_color) == 7
    marked = [mark for mark in MARKS.values() if mark.before]
    assert {mark.name for mark in marked} == {"just filled", "just overwritten", "doubted", "just taken back"}
    assert len({(mark.before, mark.after) for mark in marked}) == 4


def test_a_grid_has_lines_and_boxes(model):
    ids = torch.tensor([[5, MASK, 7, 8] * 4])
    canvas = canvas_of(model, ids, torch.ones_like(ids), columns=[4])
    assert canvas.plain(0).splitlines() == ["before the first look: 4 masked", *["  c_|ef"] * 2, "  --+--", *["  c_|ef"] * 2]
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    console.print(canvas.styled())
    assert " c  \u00b7 \u2502 e  f" in console.file.getvalue()
    canvas = canvas_of(model, ids[:, :8], torch.ones(1, 8), columns=[4])  # no square: lines without boxes
    assert canvas.plain(0).split()[-2:] == ["c_ef", "c_ef"]


def test_words_are_marked_without_the_space_before_them_and_line_breaks_are_shown():
    tokenizer = tokenizer_of(("a", "\u0120cat", "\u010a", "\u0120", "[MASK]"), decoders.ByteLevel())
    ids, after = torch.tensor([[0, 4, 4, 4]]), torch.tensor([[0, 1, 2, 3]])
    options = {"tokenizer": tokenizer, "mask_token_id": 4, "num_steps": 1, "doubt_below": 0.5}
    canvas = TerminalCanvas(ids, torch.ones_like(ids), columns=[None], titles=[""], **options)
    canvas.update(StepRecord(0, torch.tensor([True]), ids, after, ids == 4, ids == 5, torch.ones(1, 4), None, torch.ones(1)))
    assert canvas.plain(0) == "look 1 of at most 1: 3 filled, 0 taken back, 0 masked | a [cat][\u21b5][ ]"
