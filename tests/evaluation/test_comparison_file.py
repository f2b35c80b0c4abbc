"""The file of a comparison: those that ship can be read, its page names all its keys; and what is known of its presets."""

from dataclasses import MISSING, fields

import pytest
import torch
import yaml
from pages import ROOT, blocks, tables, text_of

from prism_plugin.decoding import UnmaskingPolicy
from prism_plugin.errors import ConfigurationError, UnknownNameError
from prism_plugin.evaluation import comparison_file
from prism_plugin.evaluation.comparison import trial_as_asked
from prism_plugin.evaluation.comparison_file import TaskSection, read_comparison, settings_of
from prism_plugin.evaluation.tasks import Sudoku
from prism_plugin.evaluation.tasks.sudoku import MASK_TOKEN_ID, VOCAB_SIZE
from prism_plugin.evaluation.tasks.sudoku_grids import NUM_CELLS, make_puzzles
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import PRESETS, RemaskingSampler
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.sampling.trajectories import TRAJECTORIES
from prism_plugin.testing import tiny_backbone


@pytest.fixture(scope="module")
def asked():
    """A tiny model, and three canvases of it."""
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=VOCAB_SIZE, max_position_embeddings=NUM_CELLS)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=MASK_TOKEN_ID))
    torch.nn.init.normal_(model.quality_head.layers[-1].weight)
    return model, make_puzzles(3, seed=6, num_blanks=6)[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_whether_a_sampler_draws_and_reads_the_head_is_what_it_does(asked, preset):
    """At temperature 0; asked of the sampler, and of what comes out."""
    model, ids = asked
    of_one_run = PRESETS[preset].trajectory is None
    settings = {"temperature": 0.0} if of_one_run and preset not in ("confidence", "threshold") else {}
    sampler = RemaskingSampler.from_preset(preset, model, num_steps=4, **settings)
    one, other = (sampler.infill(ids, generator=torch.Generator().manual_seed(seed), return_trace=True) for seed in (0, 1))
    order = [torch.stack([record.tokens_after for record in output.trace]) for output in (one, other)]
    assert sampler.draws == (order[0].shape != order[1].shape or not torch.equal(*order))
    assert sampler.reads_head == (one.quality is not None)


def test_a_preset_is_compared_several_times_by_words_behind_a_colon(tmp_path):
    for name in ("validation.txt", "test.txt"):
        (tmp_path / name).write_text(name)
    section = {"task": {"name": "sudoku"}, "validation": "validation.txt", "test": "test.txt", "budgets": [9]}
    tasks = {"sudoku": {**section, "adapters": {"hub": "owner/name"}}}
    presets = {"best_of:quality": [{"by": "quality"}], "best_of:probability": [{}], "best_of": [{"num_particles": 2}]}
    file = {"tasks": tasks, "presets": presets, "differences": [["best_of:quality", "best_of"]]}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(file))
    comparison = read_comparison(tmp_path / "compare.yaml", ["best_of:quality"])
    assert comparison.asked == ("best_of:quality",)
    assert settings_of("best_of:quality", {"by": "quality"}) == preset_settings("best_of", {"by": "quality"})
    for name, error, words in (
        ("best_off:quality", UnknownNameError, "No preset is called 'best_off'"),
        ("best_of:", ConfigurationError, "behind the colon of a preset comes a word of letters"),
    ):
        (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"tasks": tasks, "presets": {name: [{}]}}))
        with pytest.raises(error, match=words):
            read_comparison(tmp_path / "compare.yaml")


def test_a_policy_is_found_beside_the_file_and_a_run_is_known_by_what_it_holds(tmp_path):
    model = PrismModel.from_pretrained(ROOT / "adapters" / "sudoku-9x9" / "weights")
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        UnmaskingPolicy(8).save(tmp_path / folder / "policy.safetensors", model)
        for name in ("validation.txt", "test.txt"):
            (tmp_path / folder / name).write_text(name)
        section = {"task": {"name": "sudoku"}, "validation": "validation.txt", "test": "test.txt", "budgets": [9]}
        tasks = {"sudoku": {**section, "adapters": {"hub": "owner/name"}}}
        trials = [{"policy": {"file": "policy.safetensors"}}, {"policy": "policy.safetensors"}]
        (tmp_path / folder / "compare.yaml").write_text(yaml.safe_dump({"tasks": tasks, "presets": {"confidence": trials[:1]}}))
    asked = []
    for folder in ("one", "other"):
        (trial,) = read_comparison(tmp_path / folder / "compare.yaml").presets["confidence"]
        assert settings_of("confidence", trial)["unmasking"].file == str(tmp_path / folder / "policy.safetensors")
        asked.append(trial_as_asked("confidence", 9, trial))
    assert asked[0] != asked[1], "two policies are the same run"
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "one" / "policy.safetensors").rename(tmp_path / "moved" / "policy.safetensors")
    assert trial_as_asked("confidence", 9, {"policy": {"file": str(moved)}}) == asked[0]


@pytest.mark.parametrize("path", sorted(ROOT.glob("adapters/*/trajectories.yaml")), ids=lambda path: path.parent.name)
def test_shipped_comparisons_of_several_runs_can_be_read(path):
    assert {name.partition(":")[0] for name in read_comparison(path).presets} >= set(TRAJECTORIES.names())


@pytest.mark.parametrize("path", sorted(ROOT.glob("adapters/*/compare.yaml")), ids=lambda path: path.parent.name)
def test_shipped_comparisons_can_be_read(path):
    comparison = read_comparison(path)
    assert set(Sudoku.presets) <= set(comparison.presets)


@pytest.mark.parametrize("trials", [1, 2])
def test_a_task_whose_figures_choose_nothing_takes_one_trial_of_each_preset(tmp_path, trials):
    for name in ("reference.txt", "validation.txt", "test.txt"):
        (tmp_path / name).write_text(name)
    task = {"task": {"name": "text", "reference": "reference.txt"}, "validation": "validation.txt", "test": "test.txt"}
    tasks = {"novels": {**task, "adapters": {"hub": "owner/name"}, "budgets": [4]}}
    presets = {"random": [{"temperature": 0.5}, {}][:trials], "prism": [{}, {"num_remask": 2}][:trials]}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"tasks": tasks, "presets": presets}))
    if trials == 1:
        assert not read_comparison(tmp_path / "compare.yaml").tasks[0].task.figures["valid_words"].chooses
        return
    words = (
        "`tasks`, `novels`: no figure of this task may choose settings by itself, so every preset must have one trial, found 2"
    )
    with pytest.raises(ConfigurationError, match=words):
        read_comparison(tmp_path / "compare.yaml")


def test_the_page_about_it_names_all_keys_and_its_file_is_one(tmp_path):
    page = ROOT / "docs" / "compare.md"
    (text,) = blocks(page, "yaml")
    (table,) = tables(text_of(page, "The file"))
    known = [f"tasks.NAME.{one.name}" for one in fields(TaskSection)] + [one.name for one in fields(comparison_file._File)]
    assert sorted(row[0] for row in table) == sorted(known)
    for key, default, _ in table:
        (own,) = [one for cls in (TaskSection, comparison_file._File) for one in fields(cls) if one.name == key.split(".")[-1]]
        written = "{}" if own.default_factory is dict else "" if own.default is MISSING else repr(own.default)
        assert default == written, key
    for folder in ("data", "weights"):
        (tmp_path / folder).mkdir()
    for name in ("validation.txt", "test.txt"):
        (tmp_path / "data" / name).write_text(name)
    (tmp_path / "documented.yaml").write_text(text)
    assert list(read_comparison(tmp_path / "documented.yaml").presets) == ["random", "prism", "prism-redraft"]
