"""Options of `sample` that show how the tokens came about: `--watch` in the terminal, `--report` as a page."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.tasks import sudoku, sudoku_eval
from prism_plugin.report import require_page_path, trace_generation, write_trace_page
from prism_plugin.report.trace import require_lines
from prism_plugin.sampling import RemaskingSampler, SamplerOutput, StepRecord
from prism_plugin.types import TokenIds


def add_show_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page that replays the looks, one by one")
    parser.add_argument(
        "--grid",
        type=int,
        metavar="COLUMNS",
        help="show tokens in lines of so many (default: 9 for a Sudoku model, else a text)",
    )


def check_show_options(args: argparse.Namespace) -> None:
    """Check what can be checked before a model is loaded.

    Raises:
        ConfigurationError: If an option would be ignored or is out of range.
        SavingError: If the page could not be written.
    """
    if args.grid is not None and args.report is None:
        raise ConfigurationError("`--grid` is about how tokens are shown; give `--report` too.")
    if args.grid is not None and args.grid < 1:
        raise ConfigurationError(f"`--grid` must be at least 1 column, got {args.grid}.")
    if args.report is not None:
        require_page_path(args.report)


class Show:
    """One request, and how it is shown.

    Raises:
        ConfigurationError: If a row does not fill whole lines of the grid that was asked for.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        sampler: RemaskingSampler,
        texts: Sequence[str],
        input_ids: TokenIds,
        attention_mask: torch.Tensor,
    ) -> None:
        self._args, self._sampler, self._texts, self._mask = args, sampler, texts, attention_mask
        lengths = attention_mask.sum(-1).tolist()
        self._columns = [args.grid] * len(lengths)
        if args.grid is None and sudoku_eval.is_sudoku_model(sampler.model):
            self._columns = [sudoku.SIDE if length == sudoku.NUM_CELLS else None for length in lengths]
        for length, columns in zip(lengths, self._columns, strict=True):
            require_lines(length, columns)

    @contextmanager
    def watching(self) -> Iterator[Callable[[StepRecord], None] | None]:
        """Give the callback that is to see each look; None where nobody watches."""
        yield None

    def report(self, output: SamplerOutput) -> None:
        """Write the page, if one was asked for, and say where."""
        if self._args.report is None:
            return
        generations = [
            trace_generation(
                output.trace,
                row,
                mask_token_id=self._sampler.model.mask_token_id,
                tokenizer=self._sampler.model.tokenizer,
                attention_mask=self._mask,
                columns=self._columns[row],
                name=f"{row + 1}: {text[:60]}",
            )
            for row, text in enumerate(self._texts)
        ]
        write_trace_page(self._args.report, generations, self._sampler)
        print(f"The looks can be replayed in {self._args.report}", file=sys.stderr)
