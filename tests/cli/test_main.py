"""The verbs as a user calls them: one object with --json, one sentence and exit code 2 for a mistake, no traceback."""

import json
import subprocess
import sys

import pytest
import torch

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.evaluation.tasks import sudoku
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A saved Sudoku adapter with its backbone beside it."""
    folder = tmp_path_factory.mktemp("sudoku")
    torch.manual_seed(0)
    tiny_backbone(vocab_size=sudoku.VOCAB_SIZE, max_position_embeddings=sudoku.NUM_CELLS).save_pretrained(folder / "backbone")
    model = attach_quality_head(load_backbone(folder / "backbone"), PrismConfig(mask_token_id=sudoku.MASK_TOKEN_ID))
    model.save_pretrained(folder / "weights")
    return folder / "weights"


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A saved adapter of a text model, with a sampler."""
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    tiny_backbone().save_pretrained(folder / "backbone")
    tiny_tokenizer().save_pretrained(folder / "backbone")
    model = attach_quality_head(load_backbone(folder / "backbone"), tokenizer=tiny_tokenizer())
    model.save_pretrained(folder / "weights")
    RemaskingSampler.from_preset("confidence", model, num_steps=4).save_pretrained(folder / "weights")
    return folder / "weights"


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "puzzles.txt"
    file.write_text(f"{PUZZLE}\n{PUZZLE.replace('.', '0')}\n")
    return file


def test_eval_prints_one_object(adapter, data, capsys):
    arguments = ["eval", "sudoku", "--adapter", str(adapter), "--data", str(data), "--presets", "prism,confidence", "--json"]
    assert cli.main([*arguments, "--num-steps", "5", "--limit", "1", "--seed", "7"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["puzzles"], report["num_steps"]) == ("sudoku", 1, 5)
    assert [row["preset"] for row in report["rows"]] == ["prism", "confidence"]
    assert "training" not in report


def test_eval_prints_a_table_and_reads_the_settings_beside_the_adapter(adapter, data, capsys):
    settings = adapter.parent / "sampler.yaml"
    settings.write_text("prism: {5: {num_remask: 2, tempreture: 1.0}}")
    arguments = ["eval", "sudoku", "--adapter", str(adapter), "--data", str(data), "--presets", "prism", "--num-steps", "5"]
    try:
        assert cli.main(arguments) == 2
        assert "the preset 'prism' has no 'tempreture'" in capsys.readouterr().err.lower()
        settings.write_text("prism: {5: {num_remask: 2}}")
        assert cli.main(arguments) == 0
        assert "2 puzzles, at most 5 forward passes each" in capsys.readouterr().out
    finally:
        settings.unlink()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--data": "bad.txt"}, "line 1: a puzzle is 81 characters"),
        ({"--data": "clash.txt"}, "line 1: the clues contradict each other"),
        ({"--data": "none.txt"}, "none.txt cannot be read"),
        ({"--presets": "prism,prsm"}, "No preset is called 'prsm'. Did you mean 'prism'?"),
        ({"--limit": "0"}, "`--limit` must be at least 1, got 0"),
        ({"--num-steps": "0"}, "`--num-steps` must be at least 1, got 0"),
        ({"--adapter": "nowhere"}, "nowhere"),
        ({"--settings": "none.yaml"}, "none.yaml cannot be read"),
    ],
)
def test_eval_refuses_mistakes_in_one_sentence(adapter, data, tmp_path, monkeypatch, capsys, changed, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text("12345\n")
    (tmp_path / "clash.txt").write_text("55" + "." * 79)
    options = {"--adapter": str(adapter), "--data": str(data), **changed}
    assert cli.main(["eval", "sudoku", *[part for pair in options.items() for part in pair]]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("prism-plugin eval: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_sample_fills_masks_and_continues_prompts(writer, capsys):
    assert cli.main(["sample", "the [MASK][MASK]t", "a dog", "--adapter", str(writer), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["num_forward_passes"] for row in report["rows"]] == [2, 0]
    assert report["rows"][0]["answer"].startswith("the ")
    assert report["rows"][1]["answer"] == "a dog"
    continued = ["sample", "the ", "--adapter", str(writer), "--max-new-tokens", "3", "--preset", "prism", "--num-steps", "3"]
    assert cli.main([*continued, "--set", "num_remask=1"]) == 0
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "takes texts on the command line or `--file`; give one of the two"),
        (["a", "--file", "x"], "give one of the two"),
        (["--file", "none.txt"], "none.txt cannot be read"),
        (["--file", "empty.txt"], "empty.txt holds no text"),
        (["a", "--preset", "prism"], "`--preset` needs `--num-steps`"),
        (["a", "--num-steps", "3"], "go with `--preset`"),
        (["a", "--preset", "prism", "--num-steps", "3", "--set", "num_remask"], "`--set` takes NAME=VALUE, found 'num_remask'"),
        (["a"], "must hold the mask token"),
    ],
)
def test_sample_refuses_mistakes_in_one_sentence(writer, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    assert cli.main(["sample", *arguments, "--adapter", str(writer)]) == 2
    assert words in capsys.readouterr().err


def test_help_names_every_verb_without_importing_torch():
    code = (
        "import sys; from prism_plugin.cli.main import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in cli.VERBS)


def test_an_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trian"])
    assert "invalid choice: 'trian'" in capsys.readouterr().err
