"""Pictures are written whole, of the kind that the file's ending says, with a word for each thing that is drawn."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch

from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.evaluation.calibration import measure
from prism_plugin.evaluation.quality import SCORES, JudgedTokens
from prism_plugin.report import calibration_plot
from prism_plugin.report.calibration_plot import check_plot_file, plot_quality


@pytest.fixture(scope="module")
def figures():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(3000, generator=generator) for name in SCORES}
    step = torch.arange(3000) % 12
    judged = JudgedTokens(
        scores=scores,
        correct=torch.rand(3000, generator=generator) < scores["quality"],
        row=torch.arange(3000) // 100,
        state=torch.arange(3000) // 10,
        masked_share=1 - (step + 1) / 13,
        step=step,
    )
    few = measure(judged.where(judged.row == 0))
    return {"many": measure(judged), "few": few}


def words_of(path):
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):  # text as text, so that it can be read back
        yield path
    root = ElementTree.parse(path).getroot()
    yield {"".join(one.itertext()).strip() for one in root.iter("{http://www.w3.org/2000/svg}text")}


def test_a_picture_names_what_it_shows(figures, tmp_path):
    drawing = words_of(tmp_path / "quality.svg")
    plot_quality(figures, next(drawing), title="an adapter, 30 rows")
    words = next(drawing)
    assert {"an adapter, 30 rows", "what the score says", "share that is right", "quality", "right", "wrong"} <= words
    assert {name.replace("_", " ") for name in SCORES} <= words
    assert {"share of masks in the state, %", "number of the look", "calibrated; chance"} <= words
    assert [path.name for path in tmp_path.iterdir()] == ["quality.svg"]


@pytest.fixture
def drafts_beside_states(figures):
    drafts = ("quality", "visible_confidence", "commit_confidence", "mean_confidence")
    states = figures["many"]
    few = {"scores": {name: states.scores[name] for name in drafts}, "by_step": None}
    few["reliability"] = {name: states.reliability[name] for name in drafts}
    few["by_masked"] = [replace(one, scores={name: one.scores[name] for name in drafts}) for one in states.by_masked]
    return {"drafts": replace(states, **few), "states": states}


def test_the_legend_names_each_line_of_every_column_once(drafts_beside_states, tmp_path):
    drawing = words_of(tmp_path / "quality.svg")
    plot_quality(drafts_beside_states, next(drawing), title="both")
    next(drawing)
    drawn = [
        "".join(one.itertext()).strip()
        for one in ElementTree.parse(tmp_path / "quality.svg").getroot().iter("{http://www.w3.org/2000/svg}text")
    ]
    for name in SCORES:
        assert drawn.count(name.replace("_", " ")) == (3 if name == "quality" else 1), name  # it names two axes too
    assert drawn.count("calibrated; chance") == 1


def test_what_is_no_probability_has_no_reliability(figures):
    assert set(figures["many"].reliability) == set(SCORES) - {"age"}


def test_the_same_figures_give_the_same_file(figures, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    few = {"few": figures["few"]}
    plot_quality(few, tmp_path / "one.svg", title="twice")
    plot_quality(few, tmp_path / "other.svg", title="twice")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
    plot_quality(few, tmp_path / "one.PNG", title="pixels")
    assert (tmp_path / "one.PNG").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused_in_one_sentence(figures, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"A picture's file must end in .png or .svg, found '.*quality.jpg'"):
        check_plot_file(tmp_path / "quality.jpg")
    (tmp_path / "mine.svg").mkdir()
    with pytest.raises(SavingError, match=r"mine\.svg is a folder and cannot be overwritten by a picture; choose another name"):
        plot_quality(figures, tmp_path / "mine.svg", title="none")
    assert (tmp_path / "mine.svg").is_dir()
    (tmp_path / "mine.svg").rmdir()
    monkeypatch.setattr(calibration_plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"not installed; install it with `pip install 'prism-plugin\[plot\]'`"):
        plot_quality(figures, tmp_path / "quality.svg", title="none")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_picture(figures, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    (tmp_path / "quality.svg").write_text("old")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(SavingError, match="No space left on device"):
        plot_quality({"few": figures["few"]}, tmp_path / "quality.svg", title="none")
    assert (tmp_path / "quality.svg").read_text() == "old"
