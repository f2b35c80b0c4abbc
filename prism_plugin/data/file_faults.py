"""What is wrong with a data file, and in which line."""

import codecs
import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prism_plugin.data.lines import ENCODING, read_lines
from prism_plugin.errors import DataFormatError
from prism_plugin.parsing import parse_json


def require_utf8(file: Path) -> None:
    """Find the first byte that is no UTF-8.

    Raises:
        DataFormatError: If there is one.
    """
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            held = len(decoder.getstate()[0])  # bytes of the last chunk that a character of this one begins with
            try:
                decoder.decode(chunk, final=len(chunk) < 1 << 20)
            except UnicodeDecodeError as error:
                at = before - held + error.start
                raise DataFormatError(
                    f"{file} must be UTF-8 text, found byte {error.object[error.start]:#x} at offset {at}."
                ) from error
            before += len(chunk)


# What ends a cell of a table that is text, by the ending of the file's name.
CELLS_END = {".csv": ",", ".tsv": "\t"}
_IN_WORDS = {",": "commas", "\t": "tabs"}


def require_whole_table(file: Path, between: str) -> list[str]:
    """Read a table once, and see that every row has the cells that its header names.

    Args:
        file: A file of comma-separated or tab-separated cells.
        between: What ends a cell.

    Returns:
        The names of its columns.

    Raises:
        DataFormatError: If a row has more or fewer cells, quotes are not closed or stand inside a cell undoubled, or two
            columns have one name; names the line.
    """
    with _long_cells(), file.open(encoding=ENCODING, newline="") as stream:
        rows = csv.reader(stream, delimiter=between, strict=True)
        names: list[str] | None = None
        line = 1
        try:
            for cells in rows:
                if names is None and cells:
                    names = _names(file, line, cells)
                elif cells and names and len(cells) != len(names):  # a blank line has none
                    wanted = "1 cell" if len(names) == 1 else f"{len(names)} cells"
                    raise DataFormatError(
                        f"{file}, line {line}: a line must have {wanted} like the first, found {len(cells)}; put a text that "
                        f"holds {_IN_WORDS[between]} in double quotes."
                    )
                line = rows.line_num + 1
        except csv.Error as error:
            raise DataFormatError(
                f"{file}, line {line}: the line cannot be read as {file.suffix[1:].upper()} ({error}); put a text that holds "
                f"{_IN_WORDS[between]}, quotes or line ends in double quotes, and double the quotes inside."
            ) from error
    return names or []


def _names(file: Path, line: int, cells: list[str]) -> list[str]:
    if twice := sorted({name for name in cells if cells.count(name) > 1}):
        raise DataFormatError(
            f"{file}, line {line}: each column needs a name of its own, found {twice[0]!r} twice; rename one."
        )
    return cells


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells be as long as texts are; Python's reader refuses those of more than 131,072 characters."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def bad_json_line(file: Path) -> str | None:
    """Find the first line of a JSON Lines file that cannot be read, for the message; None when the fault lies elsewhere."""
    keys: set[str] | None = None
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            return f"{file}, line {number}: a line must be one JSON object, found {line[:60]!r} ({reason})."
        if not isinstance(row, dict):
            return f"{file}, line {number}: a line must be one JSON object, found {line[:60]!r}."
        if keys is not None and set(row) != keys:
            return f"{file}, line {number}: every line must have the same keys {sorted(keys)}, found {sorted(row)}."
        keys = set(row)
    return None
