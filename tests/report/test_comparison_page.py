"""The page and the tables of a comparison, of figures that are made up: all is within the picture, told apart, and readable."""

import io
import itertools
import re
from dataclasses import replace
from typing import ClassVar

import pytest
from browser import CHROMIUM, browser
from pages import ROOT, contrast
from rich.console import Console

from prism_plugin.evaluation.comparison_file import read_comparison
from prism_plugin.evaluation.comparison_files import to_json
from prism_plugin.evaluation.comparison_log import FigureByRow, Run
from prism_plugin.evaluation.comparison_results import CellResult, Estimate, Results, Tuned, best_trial
from prism_plugin.evaluation.tasks import Sudoku
from prism_plugin.report.chart import Line, Point, closer, lay_chart
from prism_plugin.report.comparison_page import comparison_page
from prism_plugin.report.comparison_tables import comparison_markdown, comparison_tables

ROWS = 40


def made_up(preset, steps, trial):
    """A run that solves the more, the more steps it has; presets without the head in random order hardly any."""
    level = {"random": 0, "remdm-conf": 2, "prism": 9}.get(preset, 30)
    solved = [int(row < min(level + steps.bit_length() - trial, ROWS)) for row in range(ROWS)]
    forwards = [steps if "confidence" in preset or level < 30 else steps / 2] * ROWS
    cells = FigureByRow([45] * ROWS, [51] * ROWS, has_error=False)
    figures = {"success": FigureByRow(solved, [1] * ROWS, has_error=True), "cell_accuracy": cells}
    return Run({}, figures, forwards, [81 * one for one in forwards], 12.5)


@pytest.fixture(scope="module")
def results():
    """Results of the shipped comparison, were its runs those."""
    comparison = read_comparison(ROOT / "adapters" / "sudoku-9x9" / "compare.yaml")
    (task,) = comparison.tasks
    trials = {}
    for preset, steps, settings in comparison.trials(task, comparison.asked):
        tried = trials.setdefault((preset, steps), [])
        tried.append(Tuned(preset, steps, settings, made_up(preset, steps, len(tried))))
    best = [best_trial(tried, task.task) for tried in trials.values()]
    entries = tuple(one.tested(comparison.seeds if one.sampler.draws else (0,), [one.run]) for one in best)
    every = tuple(one for tried in trials.values() for one in tried)
    counts = {"validation": ROWS, "test": ROWS}
    return Results(None, (CellResult(task, "shipped", counts, comparison.differences, every, entries),))


def test_what_reads_the_head_and_what_draws_follows_from_the_rules(results):
    (cell,) = results.cells
    reads = {entry.preset for entry in cell.entries if entry.reads_head}
    assert reads == {"prism", "prism-confidence", "prism-threshold", "prism-refine", "prism-redraft"}
    draws = {entry.preset for entry in cell.entries if len(entry.seeds) == 3}
    assert draws == {"random", "remdm-conf", "prism"}
    assert [one.budget for one in cell.best] == [17, 26, 51]
    assert cell.entries[0].test.estimate("cell_accuracy") == Estimate(45 / 51, None), "rows that do not say how far it is off"
    assert all(one.with_head.validation.forwards <= one.budget >= one.without.validation.forwards for one in cell.best)


def test_positions_are_told_where_a_forward_is_not_what_it_is_elsewhere(results):
    (cell,) = results.cells
    assert not cell.forwards_differ
    assert "positions" not in comparison_markdown(results)
    first, *others = cell.entries
    (run,) = first.test.runs
    cached = replace(first, test=replace(first.test, runs=(replace(run, positions=[one / 3 for one in run.positions]),)))
    told = comparison_markdown(Results(None, (replace(cell, entries=(cached, *others)),)))
    steps = first.num_steps
    assert f"({steps:.1f} forwards, {27 * steps:,} positions)" in told
    assert f"({steps:.1f} forwards, {81 * steps:,} positions)" in told
    assert "used" not in told


def test_tables_are_readable_in_80_columns(results):
    console = Console(width=80, file=io.StringIO())
    for table in comparison_tables(results):
        console.print(table)
    printed = console.file.getvalue()
    assert "…" not in printed
    (cell,) = results.cells
    lines = [line.split() for line in printed.splitlines()]
    for entry in cell.entries:
        assert sum(line[:2] == [entry.preset, str(entry.num_steps)] and len(line) == 8 for line in lines) == 1
    markdown = comparison_markdown(results)
    assert [line.count("|") for line in markdown.splitlines() if line.startswith("| `")] == [7] * (10 + 5)
    assert "| `prism` - `random` | 22.5 ± " in markdown


def with_another(results):
    """The same with a second adapter, whose samplers with a head solve four rows more in half the forwards."""
    (cell,) = results.cells

    def better(run):
        solved = [int(row < sum(run.figures["success"].total) + 4) for row in range(ROWS)]
        figures = {**run.figures, "success": FigureByRow(solved, [1] * ROWS, has_error=True)}
        return replace(run, figures=figures, forwards=[one / 2 for one in run.forwards])

    def changed(entry):
        if not entry.reads_head:
            return entry
        tuned = Tuned(entry.preset, entry.num_steps, entry.settings, better(entry.run))
        return tuned.tested((0,), [better(entry.test.runs[0])])

    other = replace(cell, adapter="deep", entries=tuple(changed(entry) for entry in cell.entries))
    return Results(None, (cell, other))


def test_over_several_adapters_the_best_with_the_head_and_without_choose_from_all_of_them(results):
    both = with_another(results)
    assert results.across == {}
    (found,) = both.across.values()
    assert [one.budget for one in found] == [17, 26, 51]
    for one in found:
        assert one.adapters == ("deep", "shipped")
        assert one.with_head.test.estimate("success").value > one.without.test.estimate("success").value
        adapter, entry = one.reaching
        assert entry.validation.estimate("success").value >= one.without.validation.estimate("success").value
        assert entry.validation.forwards == min(
            other.validation.forwards
            for cell in both.cells
            for other in cell.entries
            if other.reads_head
            and other.validation.estimate("success").value >= one.without.validation.estimate("success").value
        )
        assert one.fewer_forwards == 1 - entry.test.forwards / one.without.test.forwards
        assert adapter == "deep"
    assert "## sudoku, all adapters" in comparison_markdown(both)
    assert "% fewer |" in comparison_markdown(both)
    page = comparison_page(both)
    assert "sudoku, all adapters" in page
    assert page.count("% fewer</td>") == 3
    assert to_json(both)["best_across_adapters"]["sudoku"][0]["with_head"]["adapter"] == "deep"
    console = Console(width=80, file=io.StringIO())
    for table in comparison_tables(both):
        console.print(table)
    assert "…" not in console.file.getvalue()


class Unchosen(Sudoku):
    """As a task whose figures have to be read together."""

    figures: ClassVar = {name: replace(heading, chooses=False) for name, heading in Sudoku.figures.items()}


def test_where_no_figure_chooses_all_are_shown_and_no_preset_is_the_best(results):
    (cell,) = results.cells
    cell = replace(cell, task=replace(cell.task, task=Unchosen()))
    assert cell.best == ()
    shown = Results(None, (cell,))
    markdown = comparison_markdown(shown)
    assert [line.split("|")[1].strip() for line in markdown.splitlines() if line.startswith("| preset")] == [
        "preset (solved, %)",
        "preset (cells right, %)",
    ]
    assert "| `prism` - `random` | 0.0 |" in markdown
    assert "mean forwards in tuning" not in markdown
    assert "Best on the validation" in comparison_page(results)
    assert "Best on the validation" not in comparison_page(shown)


def test_the_page_holds_every_figure_and_asks_for_nothing(results):
    page = comparison_page(results)
    assert not re.search(r"(?:src|href)=|url\(|@import|https?:", page.replace("http://www.w3.org", ""))
    assert page.count('<g class="point"') == 34 + page[page.index("The upper part") :].count('<g class="point"')
    assert page.count("<tr>") == (1 + 34) + (1 + 17) + (1 + 3)
    assert "prism-redraft, 102 steps: 92.5 ± 4.2\u00a0% solved, 51.0 forwards" in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_their_names_can_be_read_in_either_scheme(results, scheme):
    page = comparison_page(results)
    cards = re.findall(r"--card: (#[0-9a-f]{6});", page)
    owns = re.findall(r"\.s(\d) \{ --own: (#[0-9a-f]{6}); \}", page)
    assert [number for number, _ in owns] == [*"0123456789"] * 2
    for number, own in owns[:10] if scheme == "light" else owns[10:]:
        assert contrast(own, cards[scheme == "dark"]) >= 4.5, number


def test_names_stand_apart_and_points_within():
    ends = [Point(90.0, 0.9 + number / 1000, 0.02, "") for number in range(9)]
    lines = [Line(str(number), number, True, (Point(1.0, 0.5, 0.01, ""), end)) for number, end in enumerate(ends)]
    lines.append(Line("low", 9, False, (Point(5.0, 0.0, 0.0, ""),)))
    chart = lay_chart(lines, str)
    heights = sorted(drawn.name_y for drawn in chart.lines)
    assert min(high - low for low, high in itertools.pairwise(heights)) >= 15.9
    frame = chart.frame
    for mark in (mark for drawn in chart.lines for mark in drawn.marks):
        assert frame["left"] < mark.x < frame["right"]
        assert frame["top"] < mark.high <= mark.y <= mark.low < frame["bottom"]
    assert [tick.text for tick in chart.columns][:4] == ["1", "1.5", "2", "3"]
    assert {line.name for line in closer(lines)} == set("012345678")
    assert closer(lines[:9]) == []
    assert lay_chart(lines[-1:], str).rows, "one point alone"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: `apt-get install chromium`, or any that is named chromium")
def test_in_a_browser_a_point_says_its_figures_and_a_line_is_picked_out(results, tmp_path):
    (tmp_path / "page.html").write_text(comparison_page(results), encoding="utf-8")
    with browser(tmp_path / "profile") as tab:
        for width in (1200, 400):
            tab.width(width)
            tab.open((tmp_path / "page.html").as_uri())
            assert tab.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
        assert tab.run("document.getElementById('tip').hidden")
        tab.run("document.querySelector('[data-name=\"prism\"] .point').focus()")
        assert tab.text("#tip") == tab.run("document.activeElement.getAttribute('aria-label')")
        assert tab.text("#tip").startswith("prism, 17 steps: 35.0 ± 7.5")
        tab.run("document.querySelector('button[data-name=\"prism\"]').click()")
        faded = "getComputedStyle(document.querySelector('g[data-name=\"%s\"]')).opacity"
        assert tab.run(f"new Promise((done) => setTimeout(() => done({faded % 'random'}), 300))", wait=True) == "0.16"
        assert tab.run(faded % "prism") == "1"
        assert tab.problems == []
        assert all(url.startswith("file:") for url in tab.requests)
