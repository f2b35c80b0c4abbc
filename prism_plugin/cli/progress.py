"""Progress bars, on stderr, so that what a verb prints can be piped."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prism_plugin.evaluation.tasks.sudoku_eval import BATCH_SIZE


@contextmanager
def sampling_progress(presets: Sequence[str], puzzles: int, num_steps: int) -> Iterator[Callable[[str], None]]:
    """Show one bar per preset, counted in forward passes of a batch.

    Yields:
        The callback for `evaluate_presets(on_step=...)`.
    """
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("forwards"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        most = math.ceil(puzzles / BATCH_SIZE) * num_steps
        tasks = {preset: progress.add_task(preset, total=most, start=False) for preset in presets}

        def on_step(preset: str) -> None:
            if not progress.tasks[tasks[preset]].started:
                progress.start_task(tasks[preset])
            progress.advance(tasks[preset])

        yield on_step
