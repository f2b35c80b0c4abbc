"""A text file's lines, the same wherever one is read."""

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
        text = Path(path).read_text(encoding=ENCODING)
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path} cannot be read: {error}") from error
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]  # what the last line end is followed by is no line
