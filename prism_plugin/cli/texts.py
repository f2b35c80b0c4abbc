"""The texts that a verb is given: on the command line, in a file, or through a pipe."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_plugin.data import read_lines, read_piped_lines
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismModel

_PIPE, _THE_PIPE = "-", "the pipe"


@dataclass(frozen=True)
class GivenTexts:
    """Texts in their order, blank lines of a file too.

    Attributes:
        lines: The texts.
        source: What they were read from; None: they stood on the command line, where each asks for something.
    """

    lines: list[str]
    source: str | None

    def is_blank(self, line: str) -> bool:
        """Whether a line asks for nothing, and is answered by nothing."""
        return self.source is not None and not line.strip()

    @property
    def file(self) -> Path | None:
        """The file that they were read from, if it was one."""
        return None if self.source in (None, _THE_PIPE) else Path(str(self.source))

    def asking(self) -> dict[str, str]:
        """The texts that ask for something, by where they stand: `prompts.txt, line 3`, or `text 3`."""
        place = "text" if self.source is None else f"{self.source}, line"
        return {f"{place} {number}": line for number, line in enumerate(self.lines, 1) if not self.is_blank(line)}


def add_text_options(parser: argparse.ArgumentParser, *, texts_are: str) -> None:
    """Declare the options.

    Args:
        parser: Of the verb.
        texts_are: What the texts are to it.
    """
    parser.add_argument("texts", nargs="*", metavar="TEXT", help=f"{texts_are}; those that are piped in, where none is given")
    parser.add_argument(
        "--file",
        help=f"read the texts from this file, one a line ({_PIPE}: what is piped in); a blank line is answered by a blank one",
    )


def given_texts(args: argparse.Namespace) -> GivenTexts:
    """Read the texts.

    Raises:
        ConfigurationError: If they are in two places or in none, or all are blank.
        DataFormatError: If they cannot be read.
    """
    stdin: Any = sys.stdin
    piped = args.file == _PIPE or (args.file is None and not args.texts and stdin is not None and not stdin.isatty())
    if bool(args.texts) + (args.file is not None or piped) != 1:
        raise ConfigurationError("Texts come on the command line, in `--file FILE`, or through a pipe; give one of these.")
    if args.texts:
        return GivenTexts(args.texts, None)
    lines = read_piped_lines(stdin) if piped else read_lines(Path(args.file))
    given = GivenTexts(lines, _THE_PIPE if piped else args.file)
    if not given.asking():
        raise ConfigurationError(f"{given.source} holds no text; write one a line.")
    return given


def require_tokenizer(model: PrismModel, args: argparse.Namespace) -> Any:
    """The model's tokenizer, which texts need.

    Raises:
        ConfigurationError: If it has none.
    """
    if model.tokenizer is None:
        raise ConfigurationError(
            f"Texts need a tokenizer, found none with {args.adapter}; put the files of the backbone's into that folder."
        )
    return model.tokenizer
