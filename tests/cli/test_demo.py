"""The demo's own path at its smallest: train, save, load, solve, and one JSON object."""

import json

import pytest
from pages import data_of

from prism_plugin.cli import demo
from prism_plugin.cli import main as cli
from prism_plugin.errors import StoredStateError


def test_the_quick_demo_trains_saves_loads_and_solves(tmp_path, capsys):
    page = tmp_path / "puzzle.html"
    assert cli.main(["demo", "--quick", "--json", "--output", str(tmp_path / "adapter"), "--report", str(page)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"task", "puzzles", "num_steps", "rows", "training", "page"}
    assert [row["preset"] for row in report["rows"]] == list(demo.PRESETS)
    assert all(0 < row["num_forward_passes"] <= report["num_steps"] for row in report["rows"])
    assert set(report["training"]) == {"steps", "seconds", "quality_auroc", "quality_ece"}
    assert report["training"]["steps"] == demo.QUICK.train_steps
    assert report["page"] == str(page)
    generations = data_of(page)
    assert {one["name"].split(":")[0] for one in generations} == set(demo.PRESETS)
    assert {one["columns"] for one in generations} == {9}
    assert all(0 < one["figures"]["num_forward_passes"] <= report["num_steps"] for one in generations)
    stored = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "quality_head.safetensors", "prism_config.json", "README.md"} <= stored


def test_a_page_that_could_not_be_written_is_known_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "train_by_recipe", lambda *_, **__: pytest.fail("it trained"))
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["demo", "--quick", "--report", str(tmp_path / "file" / "page.html")]) == 2
    assert "no page can be written to" in capsys.readouterr().err


def test_a_trained_head_is_not_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "train_by_recipe", lambda *_, **__: pytest.fail("it trained"))
    for output, words in ((tmp_path, "holds a trained head"), (tmp_path / "page.html", "must be two places, found")):
        (tmp_path / "prism_config.json").write_text("{}")
        assert cli.main(["demo", "--quick", "--output", str(output), "--report", str(tmp_path / "page.html")]) == 2
        assert words in capsys.readouterr().err


def test_a_seed_that_cannot_be_is_known_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "train_by_recipe", lambda *_, **__: pytest.fail("it trained"))
    assert cli.main(["demo", "--quick", "--seed", "-1", "--report", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == "prism-plugin demo: `--seed` must be at least 0 and below 2**32, got -1.\n"


def test_a_folder_that_is_nowhere_is_named():
    with pytest.raises(StoredStateError, match=r"The demo needs the folder none-such, found it neither in .* nor in "):
        demo.find_folder("none-such")
