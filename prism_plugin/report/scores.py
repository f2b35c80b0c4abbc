"""Texts with the quality of their tokens: as a table, in colours, and in plain characters."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from prism_plugin.report.terminal import MARKS, plain_cell, split_piece

# Quality from which a style is worn, the highest first. What is doubted is underlined besides, which needs no colour.
_BANDS = ((0.9, "green"), (0.75, ""), (0.5, "yellow"), (0.25, "red"), (0.0, "bold red"))


@dataclass(frozen=True)
class ScoredToken:
    """One token, as it is shown.

    Attributes:
        id: In the vocabulary.
        token: Its name there.
        piece: The text that it adds, fit for a terminal.
        start: Its first character in the text; None for a token that the tokenizer added, or where that is not known.
        end: The character after its last.
        quality: Probability that it is right, in [0, 1]; None at a mask, where there is nothing to be right.
        doubted: Whether that is below the threshold.
    """

    id: int
    token: str
    piece: str
    start: int | None
    end: int | None
    quality: float | None
    doubted: bool


def scores_table(tokens: Sequence[ScoredToken], *, title: str) -> Table:
    """Lay out a text's tokens, one a line, with what is doubted in its style."""
    table = Table(title=Text(title))
    table.add_column("token")
    for heading in ("id", "characters", "quality"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for one in tokens:
        piece = Text(one.piece.strip(" ").replace("\n", "\u21b5") or one.piece)
        place = "-" if one.start is None else f"{one.start}-{one.end}"
        quality = "-" if one.quality is None else f"{one.quality:.3f}"
        mark = MARKS["doubted"]
        table.add_row(piece, str(one.id), place, quality, mark.name * one.doubted, style=mark.style * one.doubted or None)
    return table


def styled_scores(tokens: Sequence[ScoredToken]) -> Text:
    """A text whose tokens wear the colour of their quality."""
    text = Text()
    for one in tokens:
        space, bare = split_piece(one.piece)
        text.append(space)
        text.append(bare.replace("\n", "\u21b5\n"), _style(one))
    return text


def _style(token: ScoredToken) -> str:
    if token.quality is None:
        return MARKS["masked"].style
    colour = next(style for least, style in _BANDS if token.quality >= least)
    return f"{colour} underline".strip() if token.doubted else colour


def styled_legend(doubt_below: float) -> Text:
    """What the colours mean."""
    bands = Text("  ").join(Text(f"{least:.2f} and above", style=style) for least, style in _BANDS)
    return Text("  ").join([bands, Text(f"doubted, below {doubt_below:g}", style="underline")])


def plain_scores(tokens: Sequence[ScoredToken]) -> str:
    """A text in plain characters, with marks around what is doubted."""
    return "".join(plain_cell((one.piece, "doubted" if one.doubted else "kept")) for one in tokens)


def plain_legend(doubt_below: float) -> str:
    """What the plain marks mean."""
    mark = MARKS["doubted"]
    return f"{mark.before}abc{mark.after} {mark.name}: quality below {doubt_below:g}"
