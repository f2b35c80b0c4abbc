"""The canvas in a terminal: what is masked, just filled, doubted or just taken back, in style and in plain characters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from torch import Tensor

from prism_plugin.report.pieces import token_pieces
from prism_plugin.sampling import StepRecord
from prism_plugin.types import TokenIds


@dataclass(frozen=True)
class Mark:
    """How a state of a token looks; no two look alike in colour, without colour, or in plain characters."""

    name: str
    style: str
    before: str = ""
    after: str = ""


MARKS = {
    "given": Mark("given", "dim"),
    "masked": Mark("masked", "dim"),
    "filled": Mark("just filled", "bold reverse green", "[", "]"),
    "overwritten": Mark("just overwritten", "bold underline magenta", "{", "}"),
    "kept": Mark("filled earlier", ""),
    "doubted": Mark("doubted", "underline yellow", "?", "?"),
    "taken": Mark("just taken back", "strike red", "~", "~"),
    "padding": Mark("padding", "dim italic"),
}
# The clues of a puzzle are what the eye starts from, so in a grid the given is strong.
_GRID_STYLES = {name: mark.style for name, mark in MARKS.items()} | {"given": "bold", "kept": "cyan"}
_TEXT_MASK, _GRID_MASK, _PLAIN_MASK = "\u2591", "\u00b7", "_"


@dataclass
class _Row:
    """One row as it stands: its own positions, and the piece and the state of each."""

    title: str
    own: Tensor
    editable: Tensor
    columns: int | None
    cells: list[tuple[str, str]]
    headline: str


class TerminalCanvas:
    """The rows of one request, brought up to date by each record.

    Args:
        input_ids: The request as the sampler got it, masks in place, [batch, length].
        attention_mask: 1 for the rows' own tokens.
        columns: For each row, positions in a line of a grid; None for a text.
        titles: Of the rows; "" for none.
        tokenizer: For the texts of tokens.
        mask_token_id: Of the model.
        num_steps: Looks at most; None where several runs follow one another.
        doubt_below: Quality below which a token counts as doubted, in [0, 1].
    """

    def __init__(
        self,
        input_ids: TokenIds,
        attention_mask: Tensor,
        *,
        columns: Sequence[int | None],
        titles: Sequence[str],
        tokenizer: Any,
        mask_token_id: int,
        num_steps: int | None,
        doubt_below: float,
    ) -> None:
        self._tokenizer, self._mask_token_id = tokenizer, mask_token_id
        self._num_steps, self._doubt_below = num_steps, doubt_below
        self._known: dict[int, str] = {}
        self._rows = []
        for ids, mask, wide, title in zip(input_ids.cpu(), attention_mask.cpu().bool(), columns, titles, strict=True):
            tokens = ids[mask]
            editable = tokens == mask_token_id
            states = ["masked" if masked else "given" for masked in editable.tolist()]
            count = int(editable.sum())
            row = _Row(title, mask, editable, wide, self._cells(tokens, states), f"before the first look: {count} masked")
            self._rows.append(row)

    def update(self, record: StepRecord) -> list[int]:
        """Take in one look. Returns the rows that took part in it."""
        looked = record.looked.nonzero().squeeze(-1).tolist()
        for number in looked:
            row = self._rows[number]
            before, after = record.tokens_before[number][row.own], record.tokens_after[number][row.own]
            remasked = record.remasked[number][row.own]
            states = self._states(record, number, row)
            row.cells = self._cells(torch.where(remasked, before, after), states)
            count = {name: states.count(name) for name in MARKS}
            said = f"{count['filled']} filled, {count['taken']} taken back, {count['masked'] + count['taken']} masked"
            said += f", {count['overwritten']} overwritten" if count["overwritten"] else ""
            said += "" if record.quality is None else f", {count['doubted']} doubted"
            most = "" if self._num_steps is None else f" of at most {self._num_steps}"
            row.headline = f"look {record.step + 1}{most}: {said}"
        return looked

    def styled(self) -> Group:
        """All rows with styles, for a terminal."""
        parts: list[RenderableType] = []
        for row in self._rows:
            title = f"{row.title}  " if row.title else ""
            parts.append(Text.assemble((title, "bold"), row.headline))
            parts.append(Padding(_styled_grid(row, row.columns) if row.columns else _styled_text(row.cells), (0, 0, 1, 2)))
        grid = any(row.columns for row in self._rows)
        styles = _GRID_STYLES if grid else {name: mark.style for name, mark in MARKS.items()}
        shown = [name for name in MARKS if name != "kept" and not (grid and name == "padding")]
        legend = Text("  ").join(Text(MARKS[name].name, style=styles[name]) for name in shown)
        return Group(*parts, legend)

    def plain(self, number: int) -> str:
        """One row in plain characters: a line for a text, as many as it has for a grid."""
        row = self._rows[number]
        title = f"{row.title}, " if row.title else ""
        if row.columns is None:
            return f"{title}{row.headline} | {''.join(map(plain_cell, row.cells))}"
        cells = [plain_cell((piece.strip(), state)) for piece, state in row.cells]
        width = max(map(len, cells))
        lines = _grid_lines([cell.center(width) for cell in cells], row.columns, width, rules="|-+")
        return "\n".join([f"{title}{row.headline}", *("  " + "".join(line).rstrip() for line in lines)])

    @staticmethod
    def plain_legend() -> str:
        """What the plain marks mean."""
        marks = [f"{mark.before}abc{mark.after} {mark.name}" for mark in MARKS.values() if mark.before]
        return f"{_PLAIN_MASK} masked, {', '.join(marks)}"

    def _states(self, record: StepRecord, number: int, row: _Row) -> list[str]:
        before, after = record.tokens_before[number][row.own], record.tokens_after[number][row.own]
        unmasked, remasked = record.unmasked[number][row.own], record.remasked[number][row.own]
        doubted = torch.zeros_like(unmasked)
        if record.quality is not None:
            doubted = record.quality[number][row.own] < self._doubt_below  # NaN is not
        states = ["given"] * len(after)
        for name, where in (
            ("kept", row.editable),
            ("doubted", doubted),
            ("masked", row.editable & (after == self._mask_token_id)),
            ("padding", row.editable & (before != after) & ~unmasked & ~remasked),
            ("filled", unmasked),
            ("overwritten", unmasked & (before != self._mask_token_id) & (before != after)),
            ("taken", remasked),
        ):
            for position in where.nonzero().squeeze(-1).tolist():
                states[position] = name
        return states

    def _cells(self, tokens: Tensor, states: list[str]) -> list[tuple[str, str]]:
        ids = tokens.tolist()
        new = set(ids) - self._known.keys()
        if new:
            self._known |= token_pieces(self._tokenizer, new)
        return [("" if state == "masked" else self._known[token], state) for token, state in zip(ids, states, strict=True)]


def _styled_grid(row: _Row, columns: int) -> Text:
    width = max(len(piece.strip()) for piece, _ in row.cells) + 2
    cells = [Text((piece.strip() or _GRID_MASK).center(width), style=_GRID_STYLES[state]) for piece, state in row.cells]
    lines = _grid_lines(cells, columns, width, rules="\u2502\u2500\u253c")
    styled = [[Text(part, style="dim") if isinstance(part, str) else part for part in line] for line in lines]
    return Text("\n").join(Text("").join(line) for line in styled)


def _styled_text(cells: Sequence[tuple[str, str]]) -> Text:
    text = Text()
    for piece, state in cells:
        space, bare = split_piece(piece)
        text.append(space)
        text.append(_TEXT_MASK if state == "masked" else bare.replace("\n", "\u21b5\n"), MARKS[state].style)
    return text


def plain_cell(cell: tuple[str, str]) -> str:
    """A piece with the marks of its state, in plain characters."""
    piece, state = cell
    if state == "masked":
        return _PLAIN_MASK
    space, bare = split_piece(piece)
    return space + MARKS[state].before + bare.replace("\n", "\u21b5") + MARKS[state].after


def split_piece(piece: str) -> tuple[str, str]:
    """The space before a word, which is not marked, and the rest; a token of spaces alone is all marked."""
    bare = piece.lstrip(" ")
    return (piece[: len(piece) - len(bare)], bare) if bare else ("", piece)


def _grid_lines(cells: Sequence[Any], columns: int, width: int, rules: str) -> list[list[Any]]:
    """Cells in lines, with rules between the boxes of a square grid whose side is a square number, as a Sudoku's."""
    upright, level, crossing = tuple(rules)
    root = math.isqrt(columns)
    box = root if root * root == columns and columns * columns == len(cells) and root > 1 else None
    lines: list[list[Any]] = []
    for start in range(0, len(cells), columns):
        if box and start and start // columns % box == 0:
            lines.append([crossing.join([level * (width * box)] * (columns // box))])
        line: list[Any] = []
        for column in range(columns):
            line += [upright] * bool(box and column and column % box == 0) + [cells[start + column]]
        lines.append(line)
    return lines
