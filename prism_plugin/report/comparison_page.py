"""The page of a comparison: success against forwards, and all figures. One HTML file that asks for nothing outside itself."""

from collections.abc import Sequence
from typing import Any

from prism_plugin.evaluation.comparison_results import CellResult, Entry, Estimate, Results
from prism_plugin.report.chart import Chart, Line, Point, closer, lay_chart
from prism_plugin.report.comparison_tables import (
    cell_text,
    estimate_text,
    first_text,
    formed,
    named_across,
    reaching_text,
    title_of,
    unit_of,
)
from prism_plugin.report.page import render

_STYLES = 10  # colours of comparison.css
_MINUS, _SPACE = "\u2212", "\u00a0"  # the space is one that no line breaks at


def comparison_page(results: Results) -> str:
    """Lay out a comparison as a page. Seconds are in it, so it is never the same twice."""
    names = dict.fromkeys(cell.task.name for cell in results.cells)
    title = f"Samplers compared on {', '.join(names)}"
    return render("comparison.html.j2", title=title, cells=_cells(results), across=_across(results), limit=results.limit)


def _cells(results: Results) -> list[dict[str, Any]]:
    return [_cell(cell) for cell in results.cells]


def _across(results: Results) -> list[dict[str, Any]]:
    """Each task that several adapters were compared on."""
    tables = []
    for task, found in results.across.items():
        cell = next(one for one in results.cells if one.task.name == task)
        rows = [
            {
                "budget": one.budget,
                "named": named_across(cell, one),
                "text": _signed(cell, one.difference),
                "reaching": reaching_text(one),
            }
            for one in found
        ]
        about = {"title": task, "first": first_text(cell), "unit": unit_of(cell), "rows_are": cell.task.task.rows_are}
        tables.append({**about, "rows": rows})
    return tables


def _cell(cell: CellResult) -> dict[str, Any]:
    presets = list(dict.fromkeys(entry.preset for entry in cell.entries))
    lines = [line for index, name in enumerate(presets) if (line := _line(cell, name, index % _STYLES)).points]
    trials = {sum(one.preset == name and one.num_steps == steps for one in cell.trials) for name, steps in _asked(cell)}
    best = _chosen(cell)
    return {
        "title": title_of(cell),
        "first": first_text(cell),
        "unit": unit_of(cell),
        "rows_are": cell.task.task.rows_are,
        "rows": cell.rows,
        "trials": min(trials),
        "seeds": max(len(entry.seeds) for entry in cell.entries),
        "best": None if best is None else {"preset": best.preset, "steps": best.num_steps, "text": _spoken(cell, best)},
        "charts": _charts(cell, lines),
        "headings": [heading.text for heading in cell.task.task.figures.values()],
        "entries": [_row(cell, entry) for entry in cell.entries],
        "differences": [
            {
                "name": f"{one.preset} {_MINUS} {one.minus}",
                "steps": one.num_steps,
                "text": _signed(cell, one.figures[cell.first]),
            }
            for one in cell.differences
        ],
        "best_within": [
            {
                "budget": one.budget,
                "named": [
                    {"preset": entry.preset, "steps": entry.num_steps, "text": cell_text(cell, entry)}
                    for entry in (one.with_head, one.without)
                ],
                "text": _signed(cell, one.difference),
            }
            for one in cell.best
        ],
    }


def _asked(cell: CellResult) -> list[tuple[str, int]]:
    return [(entry.preset, entry.num_steps) for entry in cell.entries]


def _chosen(cell: CellResult) -> Entry | None:
    """The best on the validation rows, whatever it cost; None where no figure says which that is."""
    if not cell.chooses:
        return None
    known = [(entry, entry.validation.estimate(cell.first).value) for entry in cell.entries]
    return max(((entry, value) for entry, value in known if value is not None), key=lambda pair: pair[1], default=(None, 0))[0]


def _line(cell: CellResult, preset: str, style: int) -> Line:
    entries = [entry for entry in cell.entries if entry.preset == preset]
    points = []
    for entry in entries:
        estimate = entry.test.estimate(cell.first)
        if estimate.value is not None:
            text = f"{preset}, {entry.num_steps} steps: {_spoken(cell, entry)}"
            points.append(Point(entry.test.forwards, estimate.value, estimate.stderr or 0.0, text))
    return Line(preset, style, any(entry.reads_head for entry in entries), tuple(points))


def _charts(cell: CellResult, lines: Sequence[Line]) -> list[dict[str, Any]]:
    if not lines:
        return []
    upper = closer(lines)
    charts = [{"title": f"{first_text(cell)} against mean forwards", "chart": _chart(cell, lines)}]
    return charts + ([{"title": "The upper part of it", "chart": _chart(cell, upper)}] if upper else [])


def _chart(cell: CellResult, lines: Sequence[Line]) -> Chart:
    form = cell.task.task.figures[cell.first].form
    return lay_chart(lines, (lambda value: f"{100 * value:g} %") if form.endswith("%") else (lambda value: f"{value:g}"))


def _spoken(cell: CellResult, entry: Entry) -> str:
    """The figure that counts, with what it cost, in words."""
    return f"{_shown(cell, entry.test.estimate(cell.first))} {first_text(cell)}, {entry.test.forwards:.1f} forwards"


def _shown(cell: CellResult, estimate: Estimate) -> str:
    percent = f"{_SPACE}%" if unit_of(cell) else ""
    return f"{estimate_text(cell, estimate)}{percent}"


def _signed(cell: CellResult, estimate: Estimate) -> str:
    plus = "+" if estimate.value is not None and estimate.value >= 0 else ""
    return f"{plus}{estimate_text(cell, estimate)}".replace("-", _MINUS)


def _row(cell: CellResult, entry: Entry) -> dict[str, Any]:
    figures = cell.task.task.figures
    others = [formed(entry.test.estimate(name).value, heading.form) for name, heading in figures.items() if name != cell.first]
    return {
        "preset": entry.preset,
        "steps": entry.num_steps,
        "reads_head": entry.reads_head,
        "figures": [_shown(cell, entry.test.estimate(cell.first)), *others],
        "forwards": f"{entry.test.forwards:.1f}",
        "positions": f"{entry.test.positions:,.0f}",
        "seconds": f"{entry.test.seconds:.1f}",
        "settings": ", ".join(f"{name} {value}" for name, value in entry.settings.items()) or "its defaults",
    }
