"""Progress bars, on stderr, so that what a verb prints can be piped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def _bars(unit: str = "{task.fields[unit]}", *, shown: bool = True) -> Progress:
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
def sampling_progress(presets: Sequence[str], most: int) -> Iterator[Callable[[str], None]]:
    """Show one bar per preset, counted in forward passes of a batch, of which there are so many at most.

    Yields:
        The callback for `evaluate_presets(on_step=...)`.
    """
    with _bars("forwards") as progress:
        tasks = {preset: progress.add_task(preset, total=most, start=False) for preset in presets}

        def on_step(preset: str) -> None:
            if not progress.tasks[tasks[preset]].started:
                progress.start_task(tasks[preset])
            progress.advance(tasks[preset])

        yield on_step


class ComparisonProgress:
    """Two bars: over the runs of a comparison, and over the forwards of the run that is made."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._runs = bars.add_task("comparison", total=None, unit="runs")
        self._looks = bars.add_task("", total=None, unit="forwards", visible=False)

    def plan(self, runs: int) -> None:
        """So many runs there are in all."""
        self._bars.update(self._runs, total=runs)

    def begin(self, what: str, looks: int) -> None:
        """A run begins, of at most so many forwards of a batch."""
        self._bars.reset(self._looks, description=what, total=looks, visible=True)

    def look(self) -> None:
        """A forward of a batch is done."""
        self._bars.advance(self._looks)

    def end(self) -> None:
        """A run is there."""
        self._bars.advance(self._runs)


@contextmanager
def comparison_progress() -> Iterator[ComparisonProgress]:
    """Show how far a comparison is; it is told as `evaluation.comparison.Progress` says."""
    with _bars() as bars:
        yield ComparisonProgress(bars)
