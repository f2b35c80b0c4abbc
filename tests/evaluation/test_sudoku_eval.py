"""The comparison of presets: independent of batch and order, settings picked and refused, figures as defined."""

import pytest
import torch

from prism_plugin.errors import ConfigurationError, DataFormatError, UnknownKeyError, UnknownNameError
from prism_plugin.evaluation.tasks import sudoku, sudoku_eval
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=sudoku.VOCAB_SIZE, max_position_embeddings=sudoku.NUM_CELLS)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=sudoku.MASK_TOKEN_ID))
    torch.nn.init.normal_(model.quality_head.layers[-1].weight)
    return model


@pytest.fixture(scope="module")
def puzzles():
    return sudoku_eval.Puzzles.solve(sudoku.make_puzzles(5, seed=0)[0])


def test_a_puzzle_s_answer_does_not_depend_on_the_batch(model, puzzles, monkeypatch):
    sampler, _ = sudoku_eval.make_samplers(model, ["prism"], 9, {})["prism"]
    grids, passes = sudoku_eval.solve_with(sampler, puzzles.puzzles, seed=3)
    monkeypatch.setattr(sudoku_eval, "BATCH_SIZE", 2)
    again, _ = sudoku_eval.solve_with(sampler, puzzles.puzzles, seed=3)
    other, _ = sudoku_eval.solve_with(sampler, puzzles.puzzles, seed=4)
    assert torch.equal(grids, again)
    assert not torch.equal(grids, other)
    assert passes.tolist() == [9] * 5


def test_results_have_the_figures_as_defined(model, puzzles, monkeypatch):
    answers = puzzles.solutions.clone()
    answers[0, (puzzles.puzzles[0] == 0).nonzero()[0]] %= 9
    answers[0, (puzzles.puzzles[0] == 0).nonzero()[0]] += 1  # one blank of one puzzle wrong
    monkeypatch.setattr(sudoku_eval, "solve_with", lambda *_, **__: (answers, torch.tensor([9, 9, 9, 9, 4])))
    (result,) = sudoku_eval.evaluate_presets(model, puzzles, ["confidence"], num_steps=9)
    assert result.success == pytest.approx(0.8)
    assert result.success_stderr == pytest.approx((0.8 * 0.2 / 5) ** 0.5)
    assert result.cell_accuracy == pytest.approx(1 - 1 / (51 * 5))
    assert result.num_forward_passes == pytest.approx(8.0)
    report = sudoku_eval.to_json([result], puzzles=5, num_steps=9)
    assert set(report) == {"task", "puzzles", "num_steps", "rows"}
    assert set(report["rows"][0]) == {
        "preset", "success", "success_stderr", "cell_accuracy", "num_forward_passes", "seconds", "settings",
    }  # fmt: skip


def test_every_preset_runs_within_its_forwards_and_tells_each_step(model, puzzles):
    steps = []
    results = sudoku_eval.evaluate_presets(model, puzzles, sudoku_eval.PRESETS, num_steps=6, on_step=steps.append)
    assert [result.preset for result in results] == list(sudoku_eval.PRESETS)
    assert all(0 < result.num_forward_passes <= 6 for result in results)
    assert {name: steps.count(name) for name in sudoku_eval.PRESETS if name != "threshold"} == dict.fromkeys(
        set(sudoku_eval.PRESETS) - {"threshold"}, 6
    )


def test_cells_are_judged_only_where_the_solution_is_the_only_one(model):
    blank = torch.zeros(1, sudoku.NUM_CELLS, dtype=torch.long)
    several = sudoku_eval.Puzzles.solve(blank)
    assert several.unique.tolist() == [False]
    (result,) = sudoku_eval.evaluate_presets(model, several, ["confidence"], num_steps=2)
    assert result.cell_accuracy is None


def test_a_puzzle_without_a_solution_is_refused():
    puzzle = torch.zeros(1, sudoku.NUM_CELLS, dtype=torch.long)
    puzzle[0, :8] = torch.arange(1, 9)
    puzzle[0, 17] = 9  # the ninth cell's column and box already hold the only digit left for it
    with pytest.raises(DataFormatError, match=r"a puzzle must have a solution, found none for 12345678\."):
        sudoku_eval.Puzzles.solve(puzzle)


def test_settings_are_those_tuned_for_the_nearest_number_of_steps(tmp_path):
    file = tmp_path / "sampler.yaml"
    file.write_text("prism:\n  017: {num_remask: 1, temperature: 1e-1}\n  51: {num_remask: 3}\n")
    settings = sudoku_eval.read_settings(file)
    assert settings["prism"][17]["temperature"] == 0.1, "PyYAML reads this as text, and 017 as fifteen"
    picked = [sudoku_eval.settings_for(settings, "prism", steps)["num_remask"] for steps in (1, 17, 34, 35, 99)]
    assert picked == [1, 1, 1, 3, 3]
    assert sudoku_eval.settings_for(settings, "random", 17) == {}


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[1, 2]", ConfigurationError, "must map presets to numbers of steps to settings"),
        ("prism: {}", ConfigurationError, "must map presets to numbers of steps to settings"),
        ("prism: {many: {num_remask: 1}}", ConfigurationError, "must map presets to numbers of steps to settings, .*'many'"),
        ("prism: {true: {num_remask: 1}}", ConfigurationError, "must map presets to numbers of steps to settings, .*True"),
        ("random: {17: {num_remask: 1}}", UnknownKeyError, "sampler.yaml, random, 17: The preset 'random' has no 'num_remask'"),
        ("prism: {17: {num_remask: '1'}}", ConfigurationError, "sampler.yaml, prism, 17: `num_remask` .*, found '1'"),
        ("prsm: {17: {}}", UnknownNameError, "No preset is called 'prsm' .did you mean 'prism'"),
        ("prism: {17: {", ConfigurationError, "is not valid YAML"),
        ("prism: {17: {}}\nprism: {9: {}}", ConfigurationError, "sampler.yaml is not valid YAML: prism given twice"),
        ("prism: {17: {num_remask: 1, num_remask: 2}}", ConfigurationError, "num_remask given twice"),
        (b"\xff\xfe", ConfigurationError, "cannot be read.*can't decode"),
    ],
)
def test_bad_settings_are_refused(tmp_path, text, error, words):
    file = tmp_path / "sampler.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=words):
        sudoku_eval.read_settings(file)


def test_a_setting_that_a_preset_does_not_take_is_found_before_any_work(model, puzzles, monkeypatch):
    monkeypatch.setattr(sudoku_eval, "solve_with", None)
    with pytest.raises(UnknownKeyError, match="'random' has no 'num_remask'"):
        sudoku_eval.evaluate_presets(
            model, puzzles, ["confidence", "random"], num_steps=9, settings={"random": {9: {"num_remask": 1}}}
        )


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (
            '{temperature: "1e-1"}',
            ConfigurationError,
            "sampler.yaml, prism, 9: `temperature` of SamplerSettings must be a finite number.*found '1e-1'",
        ),
        ("{num_steps: 4}", UnknownKeyError, "The preset 'prism' has no 'num_steps'"),
    ],
)
def test_settings_that_no_sampler_can_have_are_refused(model, tmp_path, settings, error, words):
    file = tmp_path / "sampler.yaml"
    file.write_text(f"prism: {{9: {settings}}}")
    with pytest.raises(error, match=words):
        sudoku_eval.make_samplers(model, ["prism"], 9, sudoku_eval.read_settings(file))
