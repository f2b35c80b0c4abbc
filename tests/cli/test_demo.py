"""The demo's own path at its smallest: train, save, load, solve, and one JSON object."""

import json

import pytest

from prism_plugin.cli import demo
from prism_plugin.cli import main as cli
from prism_plugin.errors import StoredStateError
from prism_plugin.evaluation.tasks import sudoku_eval


def test_the_quick_demo_trains_saves_loads_and_solves(tmp_path, capsys):
    assert cli.main(["demo", "--quick", "--json", "--output", str(tmp_path / "adapter")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"task", "puzzles", "num_steps", "rows", "training"}
    assert [row["preset"] for row in report["rows"]] == list(sudoku_eval.PRESETS)
    assert all(0 < row["num_forward_passes"] <= report["num_steps"] for row in report["rows"])
    assert set(report["training"]) == {"steps", "seconds", "quality_auroc", "quality_ece"}
    assert report["training"]["steps"] == demo.QUICK.train_steps
    stored = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "quality_head.safetensors", "prism_config.json", "README.md"} <= stored


def test_a_folder_that_is_nowhere_is_named():
    with pytest.raises(StoredStateError, match=r"The demo needs the folder none-such, found it neither in .* nor in "):
        demo.find_folder("none-such")
