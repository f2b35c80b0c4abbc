"""The verbs as a user calls them: one object with --json, one sentence and exit code 2 for a mistake, no traceback."""

import errno
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.cli import sample
from prism_plugin.evaluation.tasks import sudoku, sudoku_grids
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import SAMPLER_CONFIG_NAME
from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.training import get_objective
from prism_plugin.training.presets import PRESETS

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
PRESET = ["--preset", "prism", "--num-steps", "3"]
SHIPPED = Path(__file__).parents[2] / "adapters" / "sudoku-9x9" / "weights"


@pytest.fixture(autouse=True)
def _without_the_bar_of_loading():
    """So that what a verb says itself is all that stands on stderr."""
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


def assert_one_sentence(printed, verb, words):
    assert words in printed.err
    assert printed.err.startswith(f"prism-plugin {verb}: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A saved Sudoku adapter with its backbone beside it."""
    folder = tmp_path_factory.mktemp("sudoku")
    torch.manual_seed(0)
    tiny_backbone(vocab_size=sudoku.VOCAB_SIZE, max_position_embeddings=sudoku_grids.NUM_CELLS).save_pretrained(
        folder / "backbone"
    )
    model = attach_quality_head(load_backbone(folder / "backbone"), PrismConfig(mask_token_id=sudoku.MASK_TOKEN_ID))
    model.save_pretrained(folder / "weights")
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
        ({"--presets": "prism,prsm"}, "No preset is called 'prsm' (did you mean 'prism'?)"),
        ({"--presets": "prism,prism"}, "`--presets` takes each preset once, found 'prism' twice"),
        ({"--seed": "-1"}, "`--seed` must be at least 0 and below 2**32, got -1"),
        ({"--limit": "0"}, "`--limit` must be at least 1, got 0"),
        ({"--num-steps": "0"}, "`--num-steps` must be at least 1, got 0"),
        ({"--adapter": "nowhere"}, "'nowhere' is neither a folder nor a repository that can be reached"),
        ({"--settings": "none.yaml"}, "none.yaml cannot be read"),
    ],
)
def test_eval_refuses_mistakes_in_one_sentence(adapter, data, tmp_path, monkeypatch, capsys, changed, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text("12345\n")
    (tmp_path / "clash.txt").write_text("55" + "." * 79)
    options = {"--adapter": str(adapter), "--data": str(data), **changed}
    assert cli.main(["eval", "sudoku", *[part for pair in options.items() for part in pair]]) == 2
    assert_one_sentence(capsys.readouterr(), "eval", words)


def test_sample_fills_masks_and_continues_prompts(writer, capsys):
    assert cli.main(["sample", "the [MASK][MASK]t", "a dog", "--adapter", str(writer), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["num_forward_passes"] for row in report["rows"]] == [2, 0]
    assert report["rows"][0]["answer"].startswith("the ")
    assert report["rows"][1]["answer"] == "a dog"
    continued = ["sample", "the ", "--adapter", str(writer), "--max-new-tokens", "3", "--preset", "prism", "--num-steps", "3"]
    assert cli.main([*continued, "--set", "num_remask=1"]) == 0
    assert capsys.readouterr().out.endswith("\n")
    letters = [*range(2, 18), *range(19, 31)]  # all but the mask, padding, the end and "p"
    assert cli.main([*continued, "--set", f"suppress_tokens={letters}", "--min-new-tokens", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"][0]["answer"].startswith("pp")
    assert report["sampler"]["suppress_tokens"] == letters


def test_answers_stay_beside_the_lines_of_the_file(writer, tmp_path, capsys):
    file = tmp_path / "prompts[1].txt"
    file.write_bytes("\ufeffthe [MASK]\r\n\n \na\x0cdog[MASK]\n".encode())
    asked = ["sample", "--file", str(file), "--adapter", str(writer)]
    assert cli.main([*asked, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["text"] for row in rows] == ["the [MASK]", "", " ", "a\x0cdog[MASK]"]
    assert [row["num_forward_passes"] for row in rows] == [1, 0, 0, 1]
    assert cli.main(asked) == 0
    assert capsys.readouterr().out.split("\n") == [*(row["answer"] for row in rows), ""]
    assert rows[0]["answer"].startswith("the ")
    assert rows[1]["answer"] == rows[2]["answer"] == ""


def test_sample_needs_no_padding_token(writer, capsys):
    folder = shutil.copytree(writer, writer.parent / "unpadded")  # beside it, where its backbone is found
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None  # as Llama's has none
    tokenizer.save_pretrained(folder)
    assert cli.main(["sample", "the [MASK][MASK]t", "a dog", "--adapter", str(folder), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["answer"].startswith("the ")
    assert rows[1]["answer"] == "a dog"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Texts come on the command line, in `--file FILE`, or through a pipe; give one of these"),
        (["a", "--file", "x"], "give one of these"),
        (["a", "--file", "-"], "give one of these"),
        (["--file", "none.txt"], "none.txt cannot be read"),
        (["--file", "empty.txt"], "empty.txt holds no text"),
        (["--file", "page.html", "--report", "./page.html"], "must stay as it is, but page.html is the file of the texts"),
        (["a", "--preset", "prism"], "`--preset` needs `--num-steps`"),
        (["a", "--num-steps", "3"], "go with `--preset`"),
        (["a", "--preset", "prism", "--num-steps", "3", "--set", "num_remask"], "`--set` takes NAME=VALUE, found 'num_remask'"),
        (
            ["a"],
            "must hold the mask token, '[MASK]', where something is to be filled, found it in none; write it, or give `--max",
        ),
        (["a[MASK]", "--max-new-tokens", "2"], "must not hold the mask token, '[MASK]', found it in one; leave `--max-new-tok"),
        (
            ["a", "--max-new-tokens", "2", "--min-new-tokens", "3"],
            "`--min-new-tokens` must be at most `--max-new-tokens`, 2 here",
        ),
        ([*PRESET, "a", "--set", "suppress_tokens=5"], "`suppress_tokens` of SamplerSettings must list integers"),
        (["a[MASK]", "--seed", "4294967296"], "`--seed` must be at least 0 and below 2**32, got 4294967296"),
        ([*PRESET, "a", "--set", "num_remask=[1"], "--set num_remask is not valid YAML"),
        ([*PRESET, "a", "--set", f"num_remask={'[' * 10_000}"], "--set num_remask is not valid YAML: maximum recursion depth"),
        ([*PRESET, "a", "--set", "temperature=warm"], "--set: `temperature` of SamplerSettings must be a finite number"),
        ([*PRESET, "a", "--set", "top_p=null"], "`top_p` of SamplerSettings must be a number in (0, 1]"),
        ([*PRESET[:-1], "0", "a"], "`--num-steps` must be an integer of at least 1, got 0"),
        ([*PRESET, "a", "--set", "num_steps=4"], "The preset 'prism' has no 'num_steps'"),
        (["a[MASK]\udce9"], "a text must be valid Unicode, found 'a[MASK]\\udce9', which holds half a character"),
        (["a" * 65 + "[MASK]"], "a row must have at most 65 tokens, as many as bert has positions for, found 66"),
        (["a" * 60, "--max-new-tokens", "6"], "found 66 with those to generate"),
    ],
)
def test_sample_refuses_mistakes_in_one_sentence(writer, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "page.html").write_text("a[MASK]\n")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert cli.main(["sample", *arguments, "--adapter", str(writer)]) == 2
    assert_one_sentence(capsys.readouterr(), "sample", words)


def test_sample_reads_numbers_as_yaml_1_2_does(writer, capsys):
    arguments = ["sample", "the [MASK]", "--adapter", str(writer), *PRESET, "--set", "temperature=1e-1", "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["sampler"]["temperature"] == 0.1


def test_sample_tells_how_to_choose_a_sampler_where_training_saved_none(writer, capsys):
    fresh = shutil.copytree(writer, writer.parent / "fresh")  # beside it, where its backbone is found
    (fresh / SAMPLER_CONFIG_NAME).unlink()
    assert cli.main(["sample", "the [MASK]", "--adapter", str(fresh)]) == 2
    assert_one_sentence(capsys.readouterr(), "sample", "choose a sampler with `--preset NAME --num-steps N`")
    assert cli.main(["sample", "the [MASK]", "--adapter", str(fresh), *PRESET]) == 0


@pytest.mark.parametrize("how", [[], ["--max-new-tokens", "1"]])
def test_sample_names_the_text_that_the_tokenizer_cannot_read(how, capsys):
    assert cli.main(["sample", "12.", "1a", "--adapter", str(SHIPPED), *how]) == 2
    assert_one_sentence(capsys.readouterr(), "sample", "the tokenizer cannot read '1a' (WordLevel error")


def test_eval_sudoku_refuses_an_adapter_of_another_task(writer, data, capsys):
    assert cli.main(["eval", "sudoku", "--adapter", str(writer), "--data", str(data)]) == 2
    words = "must be of a Sudoku model, with 11 tokens and mask token 0, found 32 tokens and mask token 31"
    assert_one_sentence(capsys.readouterr(), "eval", words)


@pytest.mark.parametrize(
    ("code", "cause"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "access is denied"), (errno.EROFS, "the file system is read-only")],
)
def test_what_the_disk_refuses_is_one_sentence(monkeypatch, capsys, code, cause):
    def refused(_):
        raise OSError(code, os.strerror(code), "out/weights")

    monkeypatch.setattr(sample, "run", refused)
    assert cli.main(["sample", "a", "--adapter", "x"]) == 2
    assert_one_sentence(capsys.readouterr(), "sample", f"out/weights: {cause}; ")


def test_help_names_every_verb_without_importing_torch():
    code = (
        "import sys; from prism_plugin.cli.main import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in cli.VERBS)


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "prism_plugin.__main__", raising=False)  # tests that import all modules may run before
    monkeypatch.setattr(sys, "argv", ["prism-plugin", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("prism_plugin", run_name="__main__")
    assert "usage: prism-plugin" in capsys.readouterr().out


def test_an_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trian"])
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_a_module_of_the_user_is_imported_before_names_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    (tmp_path / "my_parts.py").write_text(
        "from prism_plugin.core import QualityTerm\n"
        "from prism_plugin.training import Fill, Objective, register_objective\n"
        "register_objective('of_this_test', Objective(Fill(), (QualityTerm(where='visible'),)))\n"
    )
    monkeypatch.setattr("prism_plugin.training.presets.PRESETS", dict(PRESETS))
    assert cli.main(["train", "--import", "my_parts", "--recipe", "recipe.yaml", "--quality_where", "drafted"]) == 2
    assert "The recipe recipe.yaml cannot be read" in capsys.readouterr().err
    assert get_objective("of_this_test", quality_where="drafted").terms[0].where == "drafted"
    assert cli.main(["train", "--import", "no_such_parts", "--recipe", "recipe.yaml"]) == 2
    assert_one_sentence(capsys.readouterr(), "train", "`--import` takes a module that Python can import from here")
