"""A task from a user's own module, as CONTRIBUTING shows it, is a word of `eval` and of what shows and judges."""

import json
import sys

import pytest
from pages import ROOT, blocks

from prism_plugin.cli import main as cli
from prism_plugin.evaluation.tasks import TASKS


@pytest.fixture
def echo(tmp_path, monkeypatch):
    (text,) = (block for block in blocks(ROOT / "CONTRIBUTING.md", "python") if '@TASKS.register("echo")' in block)
    (tmp_path / "echo_task.py").write_text(text, encoding="utf-8")
    (tmp_path / "words.txt").write_text("cat\nthe dog\nrain\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TASKS, "_by_name", dict(TASKS._by_name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield ["eval", "echo", "--import", "echo_task", "--data", "words.txt", "--num-steps", "2"]
    sys.modules.pop("echo_task", None)


def test_it_is_compared_as_any_other(echo, writer, capsys):
    assert cli.main([*echo, "--adapter", str(writer), "--limit", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["words"]) == ("echo", 2)
    assert [row["preset"] for row in report["rows"]] == ["confidence", "prism-confidence"]
    assert all(row["success"] in (0.0, 0.5, 1.0) and row["num_forward_passes"] == 2 for row in report["rows"])
    assert cli.main([*echo, "--adapter", str(writer)]) == 0
    assert "3 words, at most 2 forward passes each" in capsys.readouterr().out
