"""`sample --watch` and `--report` as a user calls them; what cannot be shown is one sentence before any work."""

import json
import re
from pathlib import Path

import pytest
from pages import data_of

from prism_plugin.cli import main as cli
from prism_plugin.modeling import PrismModel

SUDOKU = Path(__file__).parents[2] / "adapters" / "sudoku-9x9"
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLVE = ["sample", PUZZLE, "--adapter", str(SUDOKU / "weights"), "--preset", "prism", "--num-steps", "9"]


def test_a_report_of_a_puzzle_is_a_grid(tmp_path, capsys):
    assert cli.main([*SOLVE, "--report", str(tmp_path / "new" / "page.html"), "--json"]) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)["rows"]
    (generation,) = data_of(tmp_path / "new" / "page.html")
    assert generation["columns"] == 9
    assert generation["final_text"] == row["answer"]
    assert generation["figures"]["num_forward_passes"] == row["num_forward_passes"] == 9
    assert generation["figures"]["num_remasked"] == row["num_remasked"] > 0
    assert generation["figures"]["num_generated"] == PUZZLE.count(".")
    assert printed.err.endswith(f"The looks can be replayed in {tmp_path / 'new' / 'page.html'}\n")


def test_a_report_of_prompts_tells_them_from_what_was_generated(writer, tmp_path, capsys):
    arguments = [
        "sample",
        "the cat",
        "a",
        "--adapter",
        str(writer),
        "--max-new-tokens",
        "5",
        "--report",
        str(tmp_path / "a.html"),
    ]
    assert cli.main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    first, second = data_of(tmp_path / "a.html")
    assert first["editable"] == [7, 8, 9, 10, 11]
    assert second["editable"] == [1, 2, 3, 4, 5]
    assert first["columns"] is None
    assert first["name"] == "1: the cat"
    for generation, row in zip((first, second), rows, strict=True):
        assert generation["final_text"].startswith(row["text"])
        assert len(generation["looks"]) == row["num_forward_passes"]


def test_watching_changes_no_token(writer, tmp_path, capsys):
    arguments = ["sample", "the cat", "--adapter", str(writer), "--max-new-tokens", "9"]
    assert cli.main(arguments) == 0
    alone = capsys.readouterr().out
    assert cli.main([*arguments, "--report", str(tmp_path / "a.html"), "--watch"]) == 0
    assert capsys.readouterr().out == alone


@pytest.mark.parametrize(
    "environment", [{}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, {"FORCE_COLOR": "1", "TERM": "dumb"}], ids=" ".join
)
def test_where_nothing_can_be_drawn_there_are_plain_lines(writer, monkeypatch, capsys, environment):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = ["sample", "the [MASK][MASK]t", "a[MASK]", "--adapter", str(writer), "--preset", "prism", "--num-steps", "2"]
    assert cli.main([*arguments, "--watch", "--json"]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["rows"]
    assert "\x1b" not in printed.err
    lines = printed.err[printed.err.index("marks: ") :].splitlines()  # after transformers' bar of loading
    assert lines[0] == "marks: _ masked, [abc] just filled, {abc} just overwritten, ?abc? doubted, ~abc~ just taken back"
    assert len(lines) == 1 + sum(row["num_forward_passes"] for row in rows)
    assert re.fullmatch(
        r"text 1, look 1 of at most 2: 1 filled, 0 taken back, 1 masked, 0 doubted \| the (\[.\]_|_\[.\])t", lines[1]
    )
    assert re.fullmatch(r"text 2, look 1 of at most 2: 1 filled, 0 taken back, 0 masked, 0 doubted \| a\[.\]", lines[2])


def test_a_terminal_shows_the_canvas_over_itself(monkeypatch, capsys):
    for name in ("NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main([*SOLVE, "--watch", "--pause", "0"]) == 0
    printed = capsys.readouterr()
    frames = printed.err.split("\x1b[1A")  # the cursor goes up over the last frame
    assert f"before the first look: {PUZZLE.count('.')} masked" in printed.err
    assert list(dict.fromkeys(re.findall(r"look (\d+) of at most 9", printed.err))) == list("123456789")
    last = frames[-1]
    assert last.count("\u2502") == 2 * 9  # boxes of a Sudoku
    grid = [line for line in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", last).splitlines() if "\u2502" in line]
    assert "".join(re.findall(r"\d", "".join(grid))) == printed.out.strip()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "page.txt"], "a page is an HTML file and must be named so, found page.txt; write page.txt.html"),
        (["--report", "in/the/way.html"], "no page can be written to in/the/way.html"),
        (["--report", "folder.html"], "folder.html is a folder and cannot be overwritten by a page"),
        (["--grid", "9"], "`--grid` is about how tokens are shown; give `--watch` or `--report` too"),
        (["--pause", "1"], "`--pause` rests after each look that is watched; give `--watch` too"),
        (["--pause", "nan", "--watch"], "`--pause` must be a number of seconds of at least 0, got nan"),
        (["--grid", "0", "--report", "page.html"], "`--grid` must be at least 1 column, got 0"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("a file in the way")
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(PrismModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    assert cli.main(["sample", "a", "--adapter", "x", *options]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_a_grid_that_does_not_fit_is_refused_before_sampling(writer, tmp_path, capsys):
    arguments = ["sample", "ab[MASK]", "--adapter", str(writer), "--report", str(tmp_path / "a.html"), "--grid", "2"]
    assert cli.main(arguments) == 2
    assert "a grid of 2 columns needs rows of a multiple of as many tokens, found 3" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


def test_several_runs_are_told_shown_and_watched(tmp_path, capsys):
    arguments = [*SOLVE[:4], "--preset", "best_of", "--num-steps", "9", "--set", "num_particles=3"]
    assert cli.main([*arguments, "--report", str(tmp_path / "page.html"), "--watch", "--json"]) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)["rows"]
    generations = data_of(tmp_path / "page.html")
    assert [one["final_text"] for one in generations] == [run["answer"] for run in row["runs"]]
    assert [one["run"]["kept"] for one in generations] == [run["kept"] for run in row["runs"]]
    (kept,) = [run for run in row["runs"] if run["kept"]]
    assert kept["answer"] == row["answer"]
    assert kept["score"] == max(run["score"] for run in row["runs"])
    for run in range(3):
        assert f"run {run + 1}, look 9: " in printed.err
