"""Progress bars, on stderr, so that what a verb prints can be piped."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def _bars(unit: str, *, shown: bool = True) -> Progress:
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


@contextmanager
def counting_progress(name: str, total: int, unit: str, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show one bar, where it is to be seen: of several processes, one shows its own.

    Yields:
        The function to call after each unit.
    """
    with _bars(unit, shown=shown) as progress:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def sampling_progress(presets: Sequence[str], rows: int, num_steps: int, batch_size: int) -> Iterator[Callable[[str], None]]:
    """Show one bar per preset, counted in forward passes of a batch.

    Yields:
        The callback for `evaluate_presets(on_step=...)`.
    """
    with _bars("forwards") as progress:
        most = math.ceil(rows / batch_size) * num_steps
        tasks = {preset: progress.add_task(preset, total=most, start=False) for preset in presets}

        def on_step(preset: str) -> None:
            if not progress.tasks[tasks[preset]].started:
                progress.start_task(tasks[preset])
            progress.advance(tasks[preset])

        yield on_step
