"""A task's fields are options of `eval`: given, unknown, wrong, missing."""

import json
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from pages import ROOT, tables, text_of

from prism_plugin.cli import main as cli
from prism_plugin.evaluation.tasks import TASKS, Code, Text


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").write_text("the cat sat on the mat. a dog ran to the door.", encoding="utf-8")
    (tmp_path / "rows.txt").write_text("the cat sat\na dog ran\n", encoding="utf-8")
    return ["--data", "rows.txt", "--presets", "confidence,random", "--num-steps", "2"]


def test_fields_are_set_and_told(writer, files, capsys):
    asked = ["eval", "text", "--adapter", str(writer), *files, "--reference", "2024", "--piece", "12", "--prefix", "4"]
    assert cli.main([*asked, "--max-new-tokens", "6", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    fields = {"reference": "2024", "words": None, "max_new_tokens": 6, "prefix": 4, "piece": 12, "order": 8}
    assert (report["task"], report["texts"], report["fields"]) == ("text", 2, fields)
    assert [row["preset"] for row in report["rows"]] == ["confidence", "random"]
    assert all(set(Text.figures) <= set(row) for row in report["rows"])
    assert cli.main([*asked, "--max-new-tokens", "6"]) == 0
    table = capsys.readouterr().out
    assert "2 texts, at most 2 forward passes each" in table


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (
            "text",
            ["--prefixx", "3"],
            "eval text: nothing reads '--prefixx' (did you mean '--prefix'?); `prism-plugin eval text",
        ),
        ("text", ["--prefix", "abc"], "`--prefix` must be an integer, found 'abc'"),
        ("text", ["--prefix", "-1"], "`--prefix` must be at least 0, got -1"),
        ("text", ["--prefix"], "eval text: argument --prefix: expected one argument."),
        ("text", [], "name a file of them, such as the training data, with `--reference FILE`."),
        ("code", [], "allow it with `--allow-code-execution`, on a machine"),
        ("code", ["--allow-code-execution", "--seconds", "0"], "`--seconds` must be a number above 0, found 0"),
        ("sudoku", ["--prefix", "3"], "eval sudoku: nothing reads '--prefix'"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(files, capsys, task, options, words):
    try:
        code = cli.main(["eval", task, "--adapter", "nowhere", *files, *options])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr().err
    assert code == 2
    assert words in printed
    assert printed.count("\n") == 1


@pytest.fixture
def own(monkeypatch):
    """Registers a task with the fields that it is given."""
    monkeypatch.setattr(TASKS, "_by_name", dict(TASKS._by_name))

    def register(**of_field: Any) -> None:
        namespace = {"__annotations__": {name: type(one.default) for name, one in of_field.items()}, **of_field}
        TASKS.register("own")(dataclass(frozen=True)(type("Own", (Text,), namespace)))

    return register


def test_help_tells_each_field_with_its_default(own, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    own(share=field(default=0.5, metadata={"help": "50 % or another"}), loud=field(default=True, metadata={"help": "aloud"}))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["eval", "own", "--help"])
    told = capsys.readouterr().out
    assert "50 % or another (default: 0.5)" in told
    assert "--loud, --no-loud" in told


def test_a_field_that_hides_an_option_of_the_verb_is_refused(own, capsys):
    own(seed=field(default=0))
    assert cli.main(["eval", "own", "--help"]) == 2
    assert "The task 'own' has a field 'seed', but `--seed` is an option of `eval` itself" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "section"), [(Text, "Text"), (Code, "Code")])
def test_fields_and_figures_of_the_page_are_those_of_the_code(task, section):
    found = {table[0][0]: table for table in tables(text_of(ROOT / "docs" / "tasks.md", section))}
    assert [row[:2] for row in found[fields(task)[0].name]] == [[one.name, repr(one.default)] for one in fields(task)]
    if task is Text:
        told = [(name, heading.text) for name, heading in Text.figures.items()]
        assert [tuple(row[:2]) for row in found["valid_words"]] == told
    (listed,) = tables(text_of(ROOT / "docs" / "tasks.md").split("\n## ")[0])
    assert {"sudoku", "text", "code"} <= {row[0] for row in listed} <= set(TASKS.names())
