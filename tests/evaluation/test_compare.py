"""The comparison of presets: independent of batch and order, settings picked and refused, figures as defined."""

import pytest
import torch

from prism_plugin.errors import ConfigurationError, DataFormatError, UnknownKeyError, UnknownNameError
from prism_plugin.evaluation import compare
from prism_plugin.evaluation.tasks import Figure, Sudoku, sudoku, sudoku_grids
from prism_plugin.evaluation.tasks.sudoku import Puzzle
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone

TASK = Sudoku()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=sudoku.VOCAB_SIZE, max_position_embeddings=sudoku_grids.NUM_CELLS)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=sudoku.MASK_TOKEN_ID))
    torch.nn.init.normal_(model.quality_head.layers[-1].weight)
    return model


@pytest.fixture(scope="module")
def puzzles():
    return [Puzzle.solve(cells) for cells in sudoku_grids.make_puzzles(5, seed=0)[0]]


def test_an_answer_depends_on_the_row_and_the_seed_and_not_on_the_batch(model, puzzles):
    sampler, _ = compare.make_samplers(model, ["prism"], 9, {})["prism"]
    answers = compare.answer_rows(TASK, sampler, puzzles, seed=3)
    again, other = (compare.answer_rows(TASK, sampler, puzzles, seed=seed, batch_size=2) for seed in (3, 4))
    right = answers.figures["cell_accuracy"].total
    assert torch.equal(right, again.figures["cell_accuracy"].total)
    assert not torch.equal(right, other.figures["cell_accuracy"].total)
    assert answers.num_forward_passes.tolist() == [9] * 5


def test_figures_are_as_defined(model, puzzles):
    sequences = torch.stack([puzzle.solution for puzzle in puzzles])
    blank = (puzzles[0].cells == 0).nonzero()[0]
    sequences[0, blank] = sequences[0, blank] % 9 + 1  # one blank of one puzzle wrong
    figures = TASK.judge(puzzles, sequences, model)
    assert list(figures) == list(TASK.figures)
    assert figures["success"].value == pytest.approx(0.8)
    assert figures["success"].stderr == pytest.approx((0.8 * 0.2 / 5) ** 0.5)
    assert figures["cell_accuracy"].value == pytest.approx(1 - 1 / (51 * 5))
    parts = [TASK.judge(puzzles[rows], sequences[rows], model)["cell_accuracy"] for rows in (slice(2), slice(2, 5))]
    assert Figure.joined(parts).value == figures["cell_accuracy"].value


def test_every_preset_runs_within_its_forwards_and_tells_each_step(model, puzzles):
    steps = []
    results = compare.evaluate_presets(TASK, model, puzzles, TASK.presets, num_steps=6, on_step=steps.append)
    assert [result.preset for result in results] == list(TASK.presets)
    assert all(0 < result.num_forward_passes <= 6 for result in results)
    fixed = set(TASK.presets) - {"threshold", "prism-redraft"}
    assert {name: steps.count(name) for name in fixed} == dict.fromkeys(fixed, 6)
    report = compare.to_json(TASK, results, rows=5, num_steps=6)
    assert set(report) == {"task", "puzzles", "num_steps", "rows"}
    assert set(report["rows"][0]) == {
        "preset", "success", "success_stderr", "cell_accuracy", "num_forward_passes", "seconds", "settings",
    }  # fmt: skip


def test_cells_are_judged_only_where_the_solution_is_the_only_one(model):
    several = Puzzle.solve(torch.zeros(sudoku_grids.NUM_CELLS, dtype=torch.long))
    assert not several.unique
    figure = TASK.judge([several], several.solution.unsqueeze(0), model)["cell_accuracy"]
    assert figure.value is figure.stderr is None
    with pytest.raises(DataFormatError, match=r"must have one solution for its cells to be judged, found several for \.{81}"):
        TASK.known([several], model)


def test_a_puzzle_without_a_solution_is_refused(tmp_path):
    file = tmp_path / "puzzles.txt"
    file.write_text("12345678........9" + 64 * ".")  # the ninth cell's column and box hold the only digit left for it
    with pytest.raises(DataFormatError, match=r"a puzzle must have a solution, found none for 12345678\."):
        TASK.rows(file)


def test_settings_are_those_tuned_for_the_nearest_number_of_steps(tmp_path):
    file = tmp_path / "sampler.yaml"
    file.write_text("prism:\n  017: {num_remask: 1, temperature: 1e-1}\n  51: {num_remask: 3}\n")
    settings = compare.read_settings(file)
    assert settings["prism"][17]["temperature"] == 0.1, "PyYAML reads this as text, and 017 as fifteen"
    picked = [compare.settings_for(settings, "prism", steps)["num_remask"] for steps in (1, 17, 34, 35, 99)]
    assert picked == [1, 1, 1, 3, 3]
    assert compare.settings_for(settings, "random", 17) == {}


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
        compare.read_settings(file)


def test_a_setting_that_a_preset_does_not_take_is_found_before_any_work(model, puzzles, monkeypatch):
    monkeypatch.setattr(compare, "answer_rows", None)
    with pytest.raises(UnknownKeyError, match="'random' has no 'num_remask'"):
        compare.evaluate_presets(
            TASK, model, puzzles, ["confidence", "random"], num_steps=9, settings={"random": {9: {"num_remask": 1}}}
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
        compare.make_samplers(model, ["prism"], 9, compare.read_settings(file))
