"""`prism-plugin eval quality` on adapters of text and of Sudoku: figures, scaling, thresholds, pictures, and refusals."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.data import PrismCollator, prepare_rows
from prism_plugin.evaluation.tasks import sudoku, sudoku_grids
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.modeling.persistence import save_scaling
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.training import get_objective, objective_to_dict

DRAFTS = ["--drafts", "{num_drafted: 3}"]
PRISM = ["--preset", "prism", "--num-steps", "5"]
SHIPPED = Path(__file__).parents[2] / "adapters" / "sudoku-9x9" / "weights"
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.fixture(autouse=True)
def _without_the_bar_of_loading():
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


def attached(folder, backbone, tokenizer=None, **config):
    backbone.save_pretrained(folder / "backbone")
    return attach_quality_head(load_backbone(folder / "backbone"), PrismConfig(**config), tokenizer=tokenizer)


def saved(folder, model):
    model.save_pretrained(folder / "weights")
    RemaskingSampler.from_preset("prism-confidence", model, num_steps=6).save_pretrained(folder / "weights")
    return folder / "weights"


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """An adapter of a text model that mostly writes a, b, c or d, with a head that has learnt a little."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text")
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.get_output_embeddings().bias[3:7] += 6
    model = attached(folder, backbone, tiny_tokenizer())
    objective = get_objective("prism", num_drafted=4, diffusion_weight=0.0, t_min=0.4)
    prepared = prepare_rows(texts(32, seed=1), model.tokenizer, mask_token_id=model.mask_token_id)
    batch = PrismCollator(pad_token_id=0)(list(prepared))
    optimizer = torch.optim.AdamW(model.quality_head.parameters(), lr=3e-2)
    for epoch in range(50):
        optimizer.zero_grad()
        objective.step(model, batch, epoch=epoch, seed=0, unwrapped=model).loss.backward()
        optimizer.step()
    return saved(folder, model)


def texts(count, seed):
    """Prompts with what a reader would say next: mostly `a`, so that other letters are mostly wrong."""
    generator = torch.Generator().manual_seed(seed)
    drawn = ["".join("aaaaabcd"[one] for one in torch.randint(0, 8, (12,), generator=generator).tolist()) for _ in range(count)]
    return [{"prompt": text[:3], "completion": text[3:]} for text in drawn]


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    """An adapter of a Sudoku model, without a tokenizer."""
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=sudoku.VOCAB_SIZE, max_position_embeddings=sudoku_grids.NUM_CELLS)
    folder = tmp_path_factory.mktemp("sudoku")
    return saved(folder, attached(folder, backbone, mask_token_id=sudoku.MASK_TOKEN_ID))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in texts(96, seed=0)))
    return file


def judge(adapter, data, *arguments):
    return cli.main(["eval", "quality", "--adapter", str(adapter), "--data", str(data), *arguments])


def report_of(capsys, *arguments):
    assert judge(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_one_object_with_the_figures_of_both_kinds_of_state(writer, rows, capsys):
    sampler = [*PRISM, "--set", "num_remask=2", "--limit", "6"]
    report = report_of(capsys, writer, rows, *DRAFTS, *sampler, "--precision", "0.5")
    assert (report["task"], report["rows"], report["masked"], report["seed"]) == ("quality", 6, 1.0, 0)
    assert report["states"]["scores"]["age"]["ece"] is None
    assert report["objective"]["drafts"][0]["num_drafted"] == 3
    assert report["sampler"]["schedule"]["num_remask"] == 2
    scores = {"quality", "visible_confidence", "commit_confidence", "mean_confidence"}
    for name, own in (("drafts", scores), ("states", scores | {"mean_quality", "age"})):
        assert set(report[name]["scores"]) == own
        assert set(report[name]["reliability"]) == own - {"age"}, "an age is no probability"
        assert 0 < report[name]["right"] < 1
        assert sum(group["tokens"] for group in report[name]["by_masked"]) == report[name]["tokens"]
    assert report["drafts"]["by_step"] is None
    assert [group["low"] for group in report["states"]["by_step"]] == [2, 3, 4, 5]  # the first look sees masks alone
    assert report["threshold"]["wanted_precision"] == 0.5
    assert report_of(capsys, writer, rows, "--on", "states", *sampler)["states"] == report["states"]


def test_tables_and_a_picture(writer, rows, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    picture = tmp_path / "quality.svg"
    assert judge(writer, rows, *DRAFTS, "--precision", "0.5", "--fit-temperature", "--plot", str(picture)) == 0
    printed = capsys.readouterr().out
    expected = (
        "training drafts: ",
        "the sampler's states: ",
        "commit confidence",
        "masks",
        "look",
        "as it is",
        "scaled",
    )
    for words in expected:
        assert words in printed
    assert "Not saved" in printed
    assert "quality_threshold=" in printed or "No threshold has" in printed
    assert picture.read_text().startswith("<?xml")


def test_a_loud_head_is_scaled_and_saved(writer, rows, capsys):
    many = ["--on", "drafts", "--drafts", "{num_drafted: 9}"]
    loud = shutil.copytree(writer, writer.parent / "loud")  # beside it, where its backbone is found
    save_scaling(loud, temperature=0.2, bias=0.5)
    before = report_of(capsys, loud, rows, *many, "--fit-temperature")
    assert not before["scaling"]["saved"]
    scaling = report_of(capsys, loud, rows, *many, "--fit-temperature", "--save")["scaling"]
    assert scaling["saved"]
    assert scaling["stored"]["temperature"] == pytest.approx(0.2 * scaling["temperature"])
    assert scaling["after"]["ece"] < scaling["before"]["ece"] - 0.1
    assert scaling["after"]["cross_entropy"] < scaling["before"]["cross_entropy"] - 0.1
    assert scaling["stored"]["bias"] == pytest.approx(0.5 / scaling["temperature"] + scaling["bias"])
    again = report_of(capsys, loud, rows, *many, "--fit-temperature")
    assert (again["scaling"]["temperature"], again["scaling"]["bias"]) == (
        pytest.approx(1, abs=0.02),
        pytest.approx(0, abs=0.02),
    )
    after = again["drafts"]
    stored = json.loads((loud / "prism_config.json").read_text())
    assert stored["quality_temperature"] == pytest.approx(scaling["stored"]["temperature"])
    assert stored.get("quality_bias", 0.0) == pytest.approx(scaling["stored"]["bias"])
    assert after["scores"]["quality"]["ece"] < before["drafts"]["scores"]["quality"]["ece"] - 0.1
    assert after["scores"]["quality"]["auroc"] == pytest.approx(before["drafts"]["scores"]["quality"]["auroc"], abs=1e-3)


def test_drafts_are_those_of_training_unless_others_are_given(tmp_path, capsys):
    (tmp_path / "puzzles.txt").write_text(f"{PUZZLE}\n")
    adapter = tmp_path / "weights"
    shutil.copytree(SHIPPED, adapter)
    (tmp_path / "backbone").symlink_to(SHIPPED.parent / "backbone")
    config = json.loads((adapter / "prism_config.json").read_text())
    recorded = objective_to_dict(get_objective("prism", num_drafted=3, diffusion_weight=0.25))
    (adapter / "prism_config.json").write_text(json.dumps(config | {"objective": recorded}))
    report = report_of(capsys, adapter, tmp_path / "puzzles.txt", "--on", "drafts")
    assert report["objective"] == recorded
    other = report_of(capsys, adapter, tmp_path / "puzzles.txt", "--on", "drafts", "--drafts", "[{num_drafted: 5}]")[
        "objective"
    ]
    assert [rule["num_drafted"] for rule in other.pop("drafts")] == [5]
    assert other == {name: value for name, value in report["objective"].items() if name != "drafts"}


def test_recorded_drafts_are_judged_with_any_adapter(writer, tmp_path, capsys):
    clean, canvas = [3, 4, 5, 3, 3, 3], [3, 4, 31, 4, 3, 5]
    rows = {"input_ids": clean, "maskable": [False, False, True, True, True, True], "draft_ids": canvas}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(rows) + "\n" for _ in range(4)))
    report = report_of(capsys, writer, tmp_path / "rows.jsonl", "--on", "drafts")
    assert report["objective"]["name"] == "prism_recorded"
    assert "seed" not in report, "nothing is drawn"
    assert set(report["drafts"]["scores"]) == {"quality", "visible_confidence"}
    assert (report["drafts"]["tokens"], report["drafts"]["right"]) == (12, pytest.approx(1 / 3))
    assert judge(writer, tmp_path / "rows.jsonl", "--on", "drafts") == 0
    assert "recorded drafts: " in capsys.readouterr().out
    if importlib.util.find_spec("matplotlib"):
        assert judge(writer, tmp_path / "rows.jsonl", "--on", "drafts", "--plot", str(tmp_path / "quality.svg")) == 0
        capsys.readouterr()
    for options, words in (
        ([], "rows.jsonl has recorded drafts (`draft_ids`), which the sampler would ignore; judge them with `--on drafts`"),
        (["--on", "states"], "which the sampler would ignore; judge them with `--on drafts`, or drop the column"),
        (["--on", "drafts", *DRAFTS], "has recorded drafts (`draft_ids`), so `--drafts` would be ignored; drop the option"),
        (["--on", "drafts", "--seed", "0"], "has recorded drafts (`draft_ids`), so `--seed` would be ignored; drop the option"),
    ):
        assert judge(writer, tmp_path / "rows.jsonl", *options) == 2
        assert words in capsys.readouterr().err


def test_an_adapter_of_recorded_drafts_needs_them_or_other_ones(writer, rows, capsys):
    trained = shutil.copytree(writer, writer.parent / "recorded")
    config = json.loads((trained / "prism_config.json").read_text())
    config["objective"] = objective_to_dict(get_objective("prism_recorded"))
    (trained / "prism_config.json").write_text(json.dumps(config))
    assert judge(trained, rows, "--on", "drafts") == 2
    assert "recorded was trained on recorded drafts, and " in capsys.readouterr().err
    report = report_of(capsys, trained, rows, "--on", "drafts", *DRAFTS, "--limit", "4")
    assert report["objective"]["name"] == "prism"
    assert report["objective"]["drafts"][0]["num_drafted"] == 3


def test_puzzles_are_solved_to_be_judged(player, tmp_path, capsys):
    (tmp_path / "puzzles.txt").write_text(f"{PUZZLE}\n")
    puzzles = report_of(capsys, player, tmp_path / "puzzles.txt", "--on", "states")
    solution = sudoku_grids.solve([0 if cell == "." else int(cell) for cell in PUZZLE])[0]
    labels = [-100 if cell != "." else digit for cell, digit in zip(PUZZLE, solution, strict=True)]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input_ids": solution, "labels": labels}) + "\n")
    assert report_of(capsys, player, tmp_path / "rows.jsonl", "--on", "states")["states"] == puzzles["states"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "does not say on which drafts it was trained; give `--drafts`"),
        (["--limit", "0"], "`--limit` must be at least 1, got 0"),
        (["--seed", "-1"], "`--seed` must be at least 0 and below 2**32, got -1"),
        (["--batch-size", "0"], "`--batch-size` must be at least 1, got 0"),
        (["--max-length", "-1"], "`--max-length` must be at least 1, got -1"),
        (["--masked", "0"], "`--masked` must be a share in (0, 1], got 0.0"),
        (["--precision", "1.1"], "`--precision` must be a share in (0, 1], got 1.1"),
        (["--on", "states", *DRAFTS], "`--drafts` would be ignored with `--on states`"),
        (["--on", "drafts", *PRISM], "`--preset` is about the sampler's states, which `--on drafts` leaves out"),
        (["--on", "drafts", "--masked", "0.5"], "`--masked` is about the sampler's states"),
        (["--on", "drafts", "--precision", "0.5"], "`--precision` is about the sampler's states"),
        (["--on", "drafts", "--num-steps", "4"], "`--num-steps` and `--set` go with `--preset`"),
        (["--save"], "`--save` writes what `--fit-temperature` fits; give both, or neither"),
        (["--fit-temperature", "--save", "--adapter", "someone/head"], "`--save` needs an adapter in a folder of this machine"),
        (["--plot", "folder.svg"], "folder.svg is a folder and cannot be overwritten by a picture; choose another name"),
        (["--plot", "quality.pdf"], "A picture's file must end in .png or .svg, found 'quality.pdf'"),
        (["--drafts", "4"], "`--drafts` takes a draft rule as YAML, such as '{num_drafted: 4}', found '4'"),
        (["--drafts", "{num_draftd: 4}"], "num_draftd"),
        (["--drafts", "[{num_drafted: 4}", *PRISM], "--drafts is not valid YAML"),
        ([*DRAFTS, "--data", "none.jsonl"], "A data file must exist, found nothing readable as one at none.jsonl"),
        ([*DRAFTS, "--data", "prompts.jsonl"], "found none in prompt"),
        ([*DRAFTS, "--data", "masks.jsonl"], "masks.jsonl, row 1: data must not contain the mask token (id 31); it does"),
        ([*DRAFTS, "--data", "long.jsonl"], "set `--max-length`"),
        (
            ["--on", "states", "--data", "text.jsonl"],
            "text.jsonl, row 1: with all of it masked, nothing says which tokens are right",
        ),
        (
            ["--on", "states", "--preset", "confidence", "--num-steps", "1"],
            "The sampler showed no revealed token in any of its",
        ),
        ([*DRAFTS, "--limit", "1", "--fit-temperature"], "Fitting a temperature needs at least two rows with judged tokens"),
        (["--adapter", "headless"], "headless/prism_config.json is missing; a folder written by `save_pretrained` or"),
    ],
)
def test_mistakes_are_one_sentence(writer, rows, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    wrong = {"prompts": {"prompt": "ab"}, "masks": {"text": "a[MASK]b"}, "text": {"text": "abcd"}, "long": {"text": "ab" * 60}}
    for name, row in wrong.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "headless").mkdir()
    (tmp_path / "folder.svg").mkdir()
    assert judge(writer, rows, *arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    last = printed.err.splitlines()[-1]
    assert last.startswith("prism-plugin eval: ")


def test_a_folder_that_cannot_be_written_is_known_before_anything_is_judged(writer, rows, monkeypatch, capsys):
    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)  # tests may run as root, who may write everywhere
    monkeypatch.setattr("prism_plugin.modeling.PrismModel.from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    assert judge(writer, rows, "--fit-temperature", "--save") == 2
    assert "no scaling can be written to" in capsys.readouterr().err


def test_several_solutions_are_refused(player, tmp_path, capsys):
    (tmp_path / "puzzles.txt").write_text("." * 81)
    assert judge(player, tmp_path / "puzzles.txt", "--on", "states") == 2
    assert "a puzzle must have one solution for its cells to be judged, found several for ..." in capsys.readouterr().err
