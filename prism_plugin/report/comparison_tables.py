"""A comparison as tables: in a terminal, and in Markdown for a page of its own."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE
from rich.table import Table

from prism_plugin.evaluation.comparison_results import BestAcross, CellResult, Entry, Estimate, Results
from prism_plugin.evaluation.tasks import Heading


def comparison_tables(results: Results) -> list[Table]:
    """Lay out each task with each adapter: its presets, the differences asked for, and the best with and without the head."""
    return [table for cell in results.cells for table in _tables(cell)] + [
        _across(_cell_of(results, task), found) for task, found in results.across.items()
    ]


def _tables(cell: CellResult) -> Iterator[Table]:
    headings = cell.task.task.figures
    first = headings[cell.first]
    table = _table(title_of(cell))
    table.add_column("preset", overflow="fold")
    for text in ("steps", first.text, "± s.e.", *(one.text for one in list(headings.values())[1:])):
        table.add_column(text, justify="right")
    for text in ("forwards", "positions", "seconds"):
        table.add_column(text, justify="right")
    for index, entry in enumerate(cell.entries):
        estimates = [entry.test.estimate(name) for name in headings]
        others = [formed(one.value, heading.form) for one, heading in zip(estimates, headings.values(), strict=True)][1:]
        shown = [formed(estimates[0].value, first.form), formed(estimates[0].stderr, first.form), *others]
        costs = f"{entry.test.forwards:.1f}", f"{entry.test.positions:,.0f}", f"{entry.test.seconds:.1f}"
        ends = index + 1 == len(cell.entries) or cell.entries[index + 1].preset != entry.preset
        table.add_row(entry.preset, str(entry.num_steps), *shown, *costs, end_section=ends)
    table.caption = "Forwards and positions: mean over rows; seconds: of a run over all rows."
    yield table
    if cell.differences:
        yield from (_differences(cell, figure) for figure in cell.counting)
    if cell.best:
        yield _best(cell)


def _table(title: str) -> Table:
    """One whose nine columns 80 characters hold, the width of a page that is piped."""
    return Table(title=title, box=SIMPLE, padding=(0, 0), pad_edge=False)


def _differences(cell: CellResult, figure: str) -> Table:
    table = _table(f"{_heading(cell, figure).text}, differences paired over {cell.task.task.rows_are}")
    table.add_column("presets", overflow="fold")
    for text in ("steps", "difference", "± s.e."):
        table.add_column(text, justify="right")
    for one in cell.differences:
        table.add_row(f"{one.preset} - {one.minus}", str(one.num_steps), *_pair(cell, one.figures[figure], figure))
    return table


def _best_table(title: str) -> Table:
    """With the columns that tell the best with the head from the best without."""
    table = _table(title)
    table.add_column("forwards at most", justify="right")
    for text in ("with the head", "without"):
        table.add_column(text, overflow="fold")
    for text in ("difference", "± s.e."):
        table.add_column(text, justify="right")
    return table


def _best(cell: CellResult) -> Table:
    table = _best_table(f"{first_text(cell)}, the best within a mean number of forwards")
    for one in cell.best:
        named = [f"{entry.preset}, {entry.num_steps} steps: {cell_text(cell, entry)}" for entry in (one.with_head, one.without)]
        table.add_row(str(one.budget), *named, *_pair(cell, one.difference))
    table.caption = f"Preset and steps are chosen, and forwards counted, on validation {cell.task.task.rows_are}."
    return table


def _cell_of(results: Results, task: str) -> CellResult:
    return next(cell for cell in results.cells if cell.task.name == task)


def _across(cell: CellResult, found: Sequence[BestAcross]) -> Table:
    table = _best_table(f"{cell.task.name}, {first_text(cell)}: the best of all adapters within a mean number of forwards")
    table.add_column("as many with the head", overflow="fold")
    for one in found:
        table.add_row(str(one.budget), *named_across(cell, one), *_pair(cell, one.difference), reaching_text(one))
    table.caption = f"Adapter, preset and steps are chosen, and forwards counted, on validation {cell.task.task.rows_are}."
    return table


def named_across(cell: CellResult, one: BestAcross, quote: str = "") -> list[str]:
    """The best of all adapters with the head and without, in words."""
    pairs = zip(one.adapters, (one.with_head, one.without), strict=True)
    return [
        f"{adapter}, {quote}{entry.preset}{quote}, {entry.num_steps} steps: {cell_text(cell, entry)}"
        for adapter, entry in pairs
    ]


def reaching_text(one: BestAcross) -> str:
    """The fewest forwards with which a sampler that reads the head solves as many as the best without."""
    if one.reaching is None or one.fewer_forwards is None:
        return "none does"
    adapter, entry = one.reaching
    share = f"{abs(one.fewer_forwards):.0%} {'fewer' if one.fewer_forwards >= 0 else 'more'}"
    return f"{adapter}, {entry.preset}, {entry.num_steps} steps: {entry.test.forwards:.1f} forwards, {share}"


def _pair(cell: CellResult, estimate: Estimate, figure: str | None = None) -> tuple[str, str]:
    form = _heading(cell, figure).form
    return formed(estimate.value, f"+{form}"), formed(estimate.stderr, form)


def _heading(cell: CellResult, figure: str | None) -> Heading:
    """Of a figure; None: the one that counts."""
    return cell.task.task.figures[figure or cell.first]


def title_of(cell: CellResult) -> str:
    """What is compared, in a line."""
    task = cell.task.task
    return f"{cell.task.name}, {cell.adapter}: {cell.rows['test']:,} {task.rows_are}"


def first_text(cell: CellResult) -> str:
    """What the figure that counts is called."""
    return _heading(cell, None).text


def unit_of(cell: CellResult, figure: str | None = None) -> str:
    """What follows the name of a figure, by default the one that counts, where numbers stand without their sign."""
    return ", %" if _heading(cell, figure).form.endswith("%") else ""


def formed(value: float | None, form: str) -> str:
    """A figure as a table shows it."""
    return "-" if value is None else format(value, form)


def cell_text(cell: CellResult, entry: Entry, figure: str | None = None) -> str:
    """A figure, by default the one that counts, with its standard error, and what it took.

    Forwards tell that, unless some of the cell's samplers compute fewer or more positions in a forward than others.
    """
    used = f"{entry.test.forwards:.1f} used"
    if cell.forwards_differ:
        used = f"{entry.test.forwards:.1f} forwards, {entry.test.positions:,.0f} positions"
    return f"{estimate_text(cell, entry.test.estimate(figure or cell.first), figure)} ({used})"


def estimate_text(cell: CellResult, estimate: Estimate, figure: str | None = None) -> str:
    """A figure, by default the one that counts, with its standard error, if there is one: shares in percent, without sign."""
    form = _heading(cell, figure).form
    times, form = (100, f"{form[:-1]}f") if form.endswith("%") else (1, form)
    known = [format(times * number, form) for number in (estimate.value, estimate.stderr) if number is not None]
    return " ± ".join(known) or "-"


# ---- Markdown ----


def comparison_markdown(results: Results) -> str:
    """The same in Markdown, a column for each number of steps; without seconds, so the same runs give the same text."""
    cells = [_markdown(cell) for cell in results.cells]
    return "\n".join(cells + [_markdown_across(_cell_of(results, task), found) for task, found in results.across.items()])


def _markdown_across(cell: CellResult, found: Sequence[BestAcross]) -> str:
    heading = ["mean forwards in tuning, at most", "with the head", "without", "difference", "as many with the head"]
    rows = [
        [str(one.budget), *named_across(cell, one, "`"), estimate_text(cell, one.difference), reaching_text(one)]
        for one in found
    ]
    return f"## {cell.task.name}, all adapters\n\n{_grid(heading, rows)}"


def _markdown(cell: CellResult) -> str:
    tables = [_by_steps(cell, figure) for figure in cell.counting]
    if cell.best:
        best = []
        for one in cell.best:
            named = [
                f"`{best_of.preset}`, {best_of.num_steps} steps: {cell_text(cell, best_of)}"
                for best_of in (one.with_head, one.without)
            ]
            best.append([str(one.budget), *named, estimate_text(cell, one.difference)])
        tables.append(_grid(["mean forwards in tuning, at most", "with the head", "without", "difference"], best))
    return "\n".join([f"## {title_of(cell)}\n", *tables])


def _by_steps(cell: CellResult, figure: str) -> str:
    """A figure of each preset, and the differences in it."""
    steps = sorted({entry.num_steps for entry in cell.entries})
    presets = list(dict.fromkeys(entry.preset for entry in cell.entries))
    texts = {(entry.preset, entry.num_steps): cell_text(cell, entry, figure) for entry in cell.entries}
    lines = [[f"`{name}`", *(texts.get((name, one), "") for one in steps)] for name in presets]
    told = {(one.preset, one.minus, one.num_steps): one.figures[figure] for one in cell.differences}
    for ours, theirs in dict.fromkeys((one.preset, one.minus) for one in cell.differences):
        shown = [told.get((ours, theirs, one)) for one in steps]
        lines.append([f"`{ours}` - `{theirs}`", *("" if one is None else estimate_text(cell, one, figure) for one in shown)])
    name = f"{_heading(cell, figure).text}{unit_of(cell, figure)}"
    return _grid([f"preset ({name})", *(f"{one} steps" for one in steps)], lines)


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (headings, rule, *rows))
