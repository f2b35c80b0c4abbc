"""What is shipped in `adapters/` works as it lies there."""

from pathlib import Path

import pytest
import torch

from prism_plugin.cli.recipe import load_recipe
from prism_plugin.evaluation.tasks import sudoku, sudoku_eval
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.training import get_objective

ADAPTERS = Path(__file__).parents[1] / "adapters"
RECIPES = sorted(ADAPTERS.glob("*/recipe.yaml"))
WEIGHTS = sorted(folder for folder in ADAPTERS.glob("*/weights") if folder.is_dir())
SUDOKU = ADAPTERS / "sudoku-9x9"


def test_there_are_adapters_and_no_python():
    assert RECIPES
    assert WEIGHTS
    assert not list(ADAPTERS.rglob("*.py"))
    assert {path.parent.name for path in ADAPTERS.glob("*/*")} == {recipe.parent.name for recipe in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_recipes_are_valid(path):
    recipe = load_recipe(path, {})
    get_objective(**recipe.objective)
    assert (path.parent / "README.md").exists()


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.parent.name)
def test_weights_load_and_hold_no_path_of_a_machine(path):
    model = PrismModel.from_pretrained(path)
    assert torch.isfinite(model.quality_head.layers[-1].weight).all()
    for file in (*path.glob("*.json"), *path.glob("*.md")):
        assert str(ADAPTERS.parent) not in file.read_text(encoding="utf-8"), file
    assert isinstance(RemaskingSampler.from_pretrained(path, model), RemaskingSampler)


def test_the_sudoku_adapter_knows_right_from_wrong_and_solves_puzzles():
    model = PrismModel.from_pretrained(SUDOKU / "weights")
    puzzles = sudoku_eval.Puzzles.solve(sudoku.read_puzzles(SUDOKU / "data" / "test.txt")[:16])
    spoiled = puzzles.solutions.clone()
    cells = torch.arange(16) * 5
    rows = torch.arange(16)
    spoiled[rows, cells] = spoiled[rows, cells] % 9 + 1
    quality = model.score(spoiled)
    at_wrong = quality[rows, cells].mean()
    quality[rows, cells] = float("nan")
    assert at_wrong < quality.nanmean() - 0.1
    settings = sudoku_eval.read_settings(SUDOKU / "sampler.yaml")
    (result,) = sudoku_eval.evaluate_presets(model, puzzles, ["prism-confidence"], num_steps=26, settings=settings)
    assert result.success > 0.4


def test_every_preset_of_the_table_was_tuned_at_every_budget():
    settings = sudoku_eval.read_settings(SUDOKU / "sampler.yaml")
    model = PrismModel.from_pretrained(SUDOKU / "weights")
    for preset in sudoku_eval.PRESETS:
        for num_steps in settings[preset]:
            sudoku_eval.make_samplers(model, [preset], num_steps, settings)
        assert set(settings[preset]) == {17, 26, 51}
