"""What is shipped in `adapters/` works as it lies there."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from prism_plugin.backbones import get_spec_by_model_type, load_backbone, load_tokenizer
from prism_plugin.cli.recipe import load_recipe
from prism_plugin.evaluation.compare import answer_rows, evaluate_presets, make_samplers, read_settings
from prism_plugin.evaluation.tasks import Countdown, Sudoku, task_of
from prism_plugin.modeling import PrismModel, attach_quality_head
from prism_plugin.parsing_yaml import parse_yaml
from prism_plugin.sampling import RemaskingSampler, SamplerSettings
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.training import get_objective

ADAPTERS = Path(__file__).parents[1] / "adapters"
RECIPES = sorted(ADAPTERS.glob("*/recipe*.yaml"))
WEIGHTS = sorted(folder for folder in ADAPTERS.glob("*/weights") if folder.is_dir())
SUDOKU = ADAPTERS / "sudoku-9x9"
# Recipes that nobody has run to the end yet: no weights, and a README that says so.
WITHOUT_WEIGHTS = {"dream-7b-instruct", "llada-8b-base", "llada-8b-instruct", "llada2.1-mini", "mdlm-owt"}
FAMILY = {"dream-7b-instruct": "Dream", "llada-8b-instruct": "llada"}
LAUNCHERS = sorted(ADAPTERS.glob("*/accelerate/*.yaml"))


def test_there_are_adapters_and_no_python():
    assert RECIPES
    assert WEIGHTS
    assert not list(ADAPTERS.rglob("*.py"))
    assert {path.parent.name for path in ADAPTERS.glob("*/*")} == {recipe.parent.name for recipe in RECIPES}


def test_a_folder_has_weights_or_says_that_it_has_none():
    with_weights = {path.parent.name for path in WEIGHTS} | {path.parent.name for path in ADAPTERS.glob("*/source.json")}
    assert {recipe.parent.name for recipe in RECIPES} == with_weights | WITHOUT_WEIGHTS
    assert not with_weights & WITHOUT_WEIGHTS
    for name in WITHOUT_WEIGHTS:
        assert "No weights yet" in (ADAPTERS / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(WITHOUT_WEIGHTS))
def test_samplers_of_recipes_without_weights_are_presets_with_settings_that_exist(name):
    presets = parse_yaml((ADAPTERS / name / "sampler.yaml").read_text(encoding="utf-8"), name)
    assert len(presets) == 2
    for preset, settings in presets.items():
        num_steps = settings.pop("num_steps")
        SamplerSettings(num_steps=num_steps, **preset_settings(preset, settings))


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_accelerate_reads_its_config_files(path):
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    assert config.num_processes == (1 if path.stem == "one-gpu" else 8)
    recipe = path.parents[1] / "README.md"
    assert f"accelerate/{path.name}" in recipe.read_text(encoding="utf-8")
    if path.stem.startswith("fsdp2"):
        assert config.mixed_precision == "no"
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
        layers = get_spec_by_model_type(FAMILY[path.parts[-3]]).layer_classes
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == ",".join(layers)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_are_valid(path):
    recipe = load_recipe(path, {})
    get_objective(**recipe.objective)
    page = (path.parent / "README.md").read_text(encoding="utf-8")
    assert path.name in page
    if path.parent.name in WITHOUT_WEIGHTS:
        assert recipe.training["output_dir"].endswith(path.parent.name + path.stem.removeprefix("recipe"))


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.parent.name)
def test_weights_load_and_hold_no_path_of_a_machine(path):
    model = PrismModel.from_pretrained(path)
    assert torch.isfinite(model.quality_head.layers[-1].weight).all()
    for file in (*path.glob("*.json"), *path.glob("*.md")):
        assert str(ADAPTERS.parent) not in file.read_text(encoding="utf-8"), file
    assert isinstance(RemaskingSampler.from_pretrained(path, model), RemaskingSampler)


def test_the_sudoku_adapter_knows_right_from_wrong_and_solves_puzzles():
    model = PrismModel.from_pretrained(SUDOKU / "weights")
    puzzles = Sudoku().rows(SUDOKU / "data" / "test.txt", 16)
    spoiled = torch.stack([puzzle.solution for puzzle in puzzles])
    cells = torch.arange(16) * 5
    rows = torch.arange(16)
    spoiled[rows, cells] = spoiled[rows, cells] % 9 + 1
    quality = model.score(spoiled)
    at_wrong = quality[rows, cells].mean()
    quality[rows, cells] = float("nan")
    assert at_wrong < quality.nanmean() - 0.1
    settings = read_settings(SUDOKU / "sampler.yaml")
    (result,) = evaluate_presets(Sudoku(), model, puzzles, ["prism-confidence"], num_steps=26, settings=settings)
    assert result.answers.figures["success"].value > 0.4


def test_the_deep_head_sits_on_the_same_language_model_and_tells_full_grids_apart():
    shipped, deep = (PrismModel.from_pretrained(SUDOKU / name) for name in ("weights", "deep"))
    puzzles = Sudoku().rows(SUDOKU / "data" / "test.txt", 24)
    canvas, _ = Sudoku().canvas(puzzles, deep)
    with torch.no_grad():
        torch.testing.assert_close(shipped(canvas).logits, deep(canvas).logits)
    assert deep.quality_head.reads_history
    sampler = RemaskingSampler.from_pretrained(SUDOKU / "deep", deep)
    assert answer_rows(Sudoku(), sampler, puzzles, seed=0).figures["success"].value > 0.8
    solutions = torch.stack([puzzle.solution for puzzle in puzzles])
    spoiled = solutions.clone()
    for row, puzzle in enumerate(puzzles):  # two digits that stand in each other's places, as slips often do
        one, other = (puzzle.cells == 0).nonzero().flatten()[[3, 20]]
        spoiled[row, [one, other]] = spoiled[row, [other, one]]
    changed = (spoiled != solutions).any(-1)
    lowest = [deep.score(grids).masked_fill(canvas != 0, 1.0).amin(-1)[changed] for grids in (solutions, spoiled)]
    assert (lowest[0] > lowest[1]).double().mean() > 0.9
    for file in (*(SUDOKU / "deep").glob("*.json"), *(SUDOKU / "deep").glob("*.md")):
        assert str(ADAPTERS.parent) not in file.read_text(encoding="utf-8"), file


def test_every_preset_of_the_table_was_tuned_at_every_budget():
    settings = read_settings(SUDOKU / "sampler.yaml")
    model = PrismModel.from_pretrained(SUDOKU / "weights")
    for preset in Sudoku.presets:
        for num_steps in settings[preset]:
            make_samplers(model, [preset], num_steps, settings)
        assert set(settings[preset]) >= {17, 26, 51}


def test_the_countdown_backbone_solves_problems_that_it_has_not_seen_and_slips_where_it_hurries():
    folder, task = ADAPTERS / "countdown", Countdown()
    problems = task.rows(folder / "data" / "test.txt", 128)
    known = {str(row) for row in task.rows(folder / "data" / "train.txt")}
    assert all(row.is_held_out and str(row) not in known for row in problems)
    model = attach_quality_head(load_backbone(folder / "backbone"), tokenizer=load_tokenizer(folder / "backbone"))
    task.require_model(model)
    assert task_of(model) == task
    solved = {}
    for num_steps in (18, 5):  # one token a look, and four
        sampler = RemaskingSampler.from_preset("confidence", model, num_steps=num_steps)
        solved[num_steps] = answer_rows(task, sampler, problems, seed=0).figures["success"].value
    assert solved[18] > 0.5
    assert solved[5] < solved[18] - 0.1
