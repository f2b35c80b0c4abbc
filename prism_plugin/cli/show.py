"""Options of `sample` that show how the tokens came about: `--watch` in the terminal, `--report` as a page."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live

from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.tasks import task_of
from prism_plugin.report import Generation, require_page_path, trace_runs, write_trace_page
from prism_plugin.report.terminal import TerminalCanvas
from prism_plugin.report.trace import doubt_below, num_runs, require_lines
from prism_plugin.sampling import RemaskingSampler, SamplerOutput, StepRecord
from prism_plugin.types import TokenIds

PAUSE = 0.1  # seconds: at the speed of a small model, a terminal would show nothing but the end


def add_show_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--watch", action="store_true", help="show the canvas on stderr while it is filled; plain lines where it is no terminal"
    )
    parser.add_argument(
        "--pause", type=float, metavar="SECONDS", help=f"rest after each look that is watched (default: {PAUSE} in a terminal)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page that replays the looks, one by one")
    parser.add_argument(
        "--grid",
        type=int,
        metavar="COLUMNS",
        help="show tokens in lines of so many (default: as the model's task shows them, 9 for Sudoku; else a text)",
    )


def check_show_options(args: argparse.Namespace) -> None:
    """Check what can be checked before a model is loaded.

    Raises:
        ConfigurationError: If an option would be ignored or is out of range.
        SavingError: If the page could not be written.
    """
    if args.grid is not None and args.report is None and not args.watch:
        raise ConfigurationError("`--grid` is about how tokens are shown; give `--watch` or `--report` too.")
    if args.pause is not None and not args.watch:
        raise ConfigurationError("`--pause` rests after each look that is watched; give `--watch` too.")
    if args.pause is not None and not 0 <= args.pause < math.inf:
        raise ConfigurationError(f"`--pause` must be a number of seconds of at least 0, got {args.pause}.")
    if args.grid is not None and args.grid < 1:
        raise ConfigurationError(f"`--grid` must be at least 1 column, got {args.grid}.")
    if args.report is not None:
        require_page_path(args.report)


class Show:
    """The texts of one call, and how their looks are shown.

    Raises:
        ConfigurationError: If a row does not fill whole lines of the grid that was asked for.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        sampler: RemaskingSampler,
        texts: Sequence[str],
        attention_mask: torch.Tensor,
    ) -> None:
        self.is_watched, self.is_reported = args.watch, args.report is not None
        self._args, self._sampler, self._texts = args, sampler, texts
        self._generations: list[Generation] = []
        self._has_legend = False
        lengths = attention_mask.sum(-1).tolist()
        self._columns = [args.grid] * len(lengths)
        task = task_of(sampler.model)
        if args.grid is None and task is not None:
            self._columns = [task.layout(length) for length in lengths]
        for length, columns in zip(lengths, self._columns, strict=True):
            require_lines(length, columns)

    @contextmanager
    def watching(
        self, rows: Sequence[int], input_ids: TokenIds, attention_mask: torch.Tensor
    ) -> Iterator[Callable[[StepRecord], None] | None]:
        """Give the callback that is to see each look at a batch; None where nobody watches.

        Args:
            rows: Numbers of the batch's texts.
            input_ids: What is asked about them.
            attention_mask: The rows' own tokens.
        """
        if not self.is_watched:
            yield None
            return
        count = num_runs(self._sampler)
        canvas = TerminalCanvas(
            input_ids.repeat_interleave(count, dim=0),
            attention_mask.repeat_interleave(count, dim=0),
            columns=[self._columns[row] for row in rows for _ in range(count)],
            titles=[self._title(row, run, count) for row in rows for run in range(count)],
            tokenizer=self._sampler.model.tokenizer,
            mask_token_id=self._sampler.model.mask_token_id,
            num_steps=self._sampler.num_steps if self._sampler.trajectory is None else None,
            doubt_below=doubt_below(self._sampler),
        )
        console = Console(stderr=True)
        live = shows_styles(console)
        pause = self._args.pause if self._args.pause is not None else PAUSE * live
        if not live and not self._has_legend:
            print(f"marks: {canvas.plain_legend()}", file=sys.stderr)
            self._has_legend = True
        with _drawing(canvas, console) if live else _printing(canvas) as draw:

            def on_step(record: StepRecord) -> None:
                draw(canvas.update(record))
                time.sleep(pause)

            yield on_step

    def _title(self, row: int, run: int, count: int) -> str:
        parts = [f"text {row + 1}"] * (len(self._texts) > 1) + [f"run {run + 1}"] * (count > 1)
        return ", ".join(parts)

    def keep(self, rows: Sequence[int], attention_mask: torch.Tensor, output: SamplerOutput) -> None:
        """Keep what a batch gave for the page, if one was asked for; `rows` are the numbers of its texts."""
        if not self.is_reported:
            return
        for place, row in enumerate(rows):
            self._generations += trace_runs(
                output,
                place,
                self._sampler,
                attention_mask=attention_mask,
                columns=self._columns[row],
                name=f"{row + 1}: {self._texts[row][:60]}",
            )

    def report(self) -> None:
        """Write the page, if one was asked for, and say where."""
        if not self.is_reported:
            return
        write_trace_page(self._args.report, self._generations)
        print(f"The looks can be replayed in {self._args.report}", file=sys.stderr)


def shows_styles(console: Console) -> bool:
    """Whether colours can be seen there; where they cannot, plain marks take their place."""
    return console.is_terminal and not console.is_dumb_terminal and not console.no_color


@contextmanager
def _drawing(canvas: TerminalCanvas, console: Console) -> Iterator[Callable[[list[int]], None]]:
    with Live(canvas.styled(), console=console, auto_refresh=False, redirect_stdout=False) as live:
        yield lambda _: live.update(canvas.styled(), refresh=True)


@contextmanager
def _printing(canvas: TerminalCanvas) -> Iterator[Callable[[list[int]], None]]:
    yield lambda looked: print("\n".join(map(canvas.plain, looked)), file=sys.stderr)
