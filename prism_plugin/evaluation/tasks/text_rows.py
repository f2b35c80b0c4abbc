"""Texts of a file, whole or in pieces: what a model is asked to write like, and what its answers are compared with."""

import re
from pathlib import Path

from prism_plugin.data import is_data_file, read_lines, read_rows
from prism_plugin.errors import DataFormatError


def read_texts(path: str | Path, piece: int | None) -> list[str]:
    """Read texts.

    Args:
        path: A file of rows, as `train` takes them: json, jsonl, csv and parquet with `text`, or txt, a row a line. With
            `piece`, any file of UTF-8 text.
        piece: Cut texts into pieces of at most this many characters, each from the beginning of a word to the end of one; a txt
            file, and any other that is none of rows, is one text then. None: rows are as they stand.

    Raises:
        DataFormatError: If the file cannot be read, holds no text, or rows of something else.
    """
    path = Path(path)
    if is_data_file(path.name) and path.suffix != ".txt":
        texts = _column(path)
    elif piece is not None:
        texts = ["\n".join(read_lines(path))]
    elif path.suffix == ".txt":
        texts = read_lines(path)
    else:
        raise DataFormatError(
            f"{path}: rows come from json, jsonl, csv, parquet and txt; to judge by pieces of another file of text, give their "
            "longest length in characters, `piece` (`--piece 256`)."
        )
    texts = [text for text in texts if text.strip()]
    if piece is not None:
        texts = [one for text in texts for one in cut(text, piece)]
    if not texts:
        raise DataFormatError(f"{path} holds no text; write one a line.")
    return texts


def _column(path: Path) -> list[str]:
    rows = read_rows(str(path))
    if "text" not in rows.column_names:
        raise DataFormatError(f"{path}: rows need a column `text`, found {', '.join(rows.column_names)}; rename one.")
    for number, text in enumerate(rows["text"], start=1):
        if not isinstance(text, str):
            raise DataFormatError(f"{path}, row {number}: `text` must be text, found {type(text).__name__}.")
    return list(rows["text"])


def cut(text: str, size: int) -> list[str]:
    """Cut a text at white space into pieces of at most `size` characters, >= 2. A longer word is cut where it has to be."""
    whole_words = rf"\S(?:.{{0,{size - 2}}}\S)?(?!\S)"
    return re.findall(rf"{whole_words}|\S{{{size}}}", text, flags=re.DOTALL)
