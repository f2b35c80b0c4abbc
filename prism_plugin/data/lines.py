"""A text file's lines, the same wherever one is read."""

from io import TextIOWrapper
from pathlib import Path

from prism_plugin.errors import DataFormatError

# UTF-8, without the mark that some editors write at the beginning of a file.
ENCODING = "utf-8-sig"


def read_lines(path: str | Path) -> list[str]:
    r"""Read the lines of a UTF-8 file, blank ones too, without their ends.

    A line ends with \n, \r\n or \r. Form feeds and the separators of Unicode, at which `str.splitlines` breaks too, are
    characters of the text.

    Raises:
        DataFormatError: If the file cannot be read, or is not UTF-8.
    """
    try:
        return _lines_of(Path(path).read_text(encoding=ENCODING))
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} cannot be read: {error}") from error


def read_piped_lines(stream: TextIOWrapper) -> list[str]:
    """Read what comes through a pipe, as `read_lines` reads a file.

    Raises:
        DataFormatError: If it cannot be read, or is not UTF-8.
    """
    try:
        stream.reconfigure(encoding=ENCODING, errors="strict")
        return _lines_of(stream.read())
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"What is piped in cannot be read: {error}") from error


def _lines_of(text: str) -> list[str]:
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]  # what the last line end is followed by is no line
