"""How a verb ends: no traceback but for our own faults, Ctrl-C with how to go on, and silence where a pipe was closed."""

import argparse
import errno
import importlib
import os
import signal
import sys

import pytest
from tqdm import tqdm
from train_verb import run

from prism_plugin.cli import main as cli
from prism_plugin.cli import sample, show
from prism_plugin.cli.errors import in_options
from prism_plugin.errors import ConfigurationError
from prism_plugin.training import PrismTrainer

SAMPLE = ["sample", "the [MASK][MASK]", "--adapter"]


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    """Makes a module of the user's out of its code."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return made


def assert_sentence(printed, sentence):
    assert printed.err == f"prism-plugin {sentence}\n"
    assert printed.out == ""


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        ("OSError(5, 'Input/output error')", "Input/output error; `--traceback` shows how it came to that."),
        ("OSError(21, 'Is a directory', 'x')", "x: Is a directory; `--traceback` shows how it came to that."),
        ("RuntimeError('a.\\n  b; ')", "FILE, line 2: RuntimeError: a. b; `--traceback` shows how it came to that."),
        ("AssertionError()", "FILE, line 2: AssertionError; `--traceback` shows how it came to that."),
        ("MemoryError()", "the memory of this machine does not suffice; ask for less at once."),
    ],
)
def test_what_other_code_raises_is_one_sentence(user_code, tmp_path, monkeypatch, capsys, raised, sentence):
    module = importlib.import_module(user_code(f"raises_{abs(hash(raised))}", f"def run(_):\n    raise {raised}\n"))
    monkeypatch.setattr(sample, "run", module.run)
    assert cli.main(["sample", "a", "--adapter", "x"]) == 2
    assert_sentence(capsys.readouterr(), f"sample: {sentence.replace('FILE', str(tmp_path / module.__name__) + '.py')}")
    assert cli.main(["sample", "a", "--adapter", "x", "--traceback"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sample, "require_seed", None)
    with pytest.raises(TypeError, match="not callable") as caught:
        cli.main(["sample", "a", "--adapter", "x"])
    assert "please report it" in caught.value.__notes__[0]


def test_a_module_that_is_no_python_is_refused(user_code, capsys):
    assert cli.main(["sample", "--import", user_code("no_python", "def :"), "a", "--adapter", "x"]) == 2
    assert "'no_python' cannot be: SyntaxError: invalid syntax (no_python.py, line 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        (
            "sample",
            "`max_new_tokens` is not `num_steps=3`, nor `top_p`.",
            "`--max-new-tokens` is not `--num-steps 3`, nor `top_p`.",
        ),
        ("sample", "pass `trust_remote_code=True`.", "pass `--trust-remote-code`."),
        ("sample", "`num_steps` of SamplerSettings must be positive.", "`--num-steps` must be positive."),
        (
            "compare",
            "a.yaml, `adapters`: `presets` stays; pass `trust_remote_code=True`.",
            "a.yaml, `adapters`: `presets` stays; pass `--trust-remote-code`.",
        ),
        (
            "train",
            "r.yaml: `max_steps` stays; `trust_remote_code=True` too.",
            "r.yaml: `max_steps` stays; `trust_remote_code=True` too.",
        ),
        ("train", "`max_steps` stays; `trust_remote_code=True`.", "`max_steps` stays; `--trust_remote_code`."),
        ("train", '(`load_backbone(..., quantization="nf4")`).', "(`--quantization nf4`)."),
        ("doctor", "pass `PrismConfig(mask_token_id=...)`.", "pass `--mask-token-id`."),
        (
            "doctor",
            "set `backbone.config.is_causal = False` before attaching.",
            'write `"is_causal": false` into its config.json.',
        ),
        ("doctor", "load it with `is_decoder=False`.", 'write `"is_decoder": false` into its config.json.'),
        ("doctor", "call `register_backbone(B())`.", "call `register_backbone(B())`, in a module that `--import` names."),
        (
            "export",
            "`merge=False` takes none; export with `merge=True`.",
            "`--no-merge` takes none; export without `--no-merge`.",
        ),
    ],
)
def test_the_library_s_words_become_those_of_the_command_line(verb, words, told):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"prism_plugin.cli.{verb}").add_arguments(parser)
    assert in_options(words, parser) == told


def test_an_error_has_a_line_of_its_own_beside_an_open_bar(monkeypatch, capsys):
    def refused(_):
        bar = tqdm(total=3, file=sys.stderr)
        bar.update()
        raise ConfigurationError("No.") from ValueError(bar)

    monkeypatch.setattr(sample, "run", refused)
    assert cli.main(["sample", "a", "--adapter", "x"]) == 2
    assert capsys.readouterr().err.endswith("\nprism-plugin sample: No.\n")


@pytest.fixture
def interruptible():
    """What is started in the background has SIGINT ignored, the tests then too; a person's terminal has not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_train_that_is_interrupted_says_how_to_go_on(recipe, monkeypatch, capsys):
    log = PrismTrainer.log

    def interrupted(self, logs, *args):
        log(self, logs, *args)
        if self.state.global_step == stop_at:
            signal.raise_signal(signal.SIGINT)

    stop_at = 2  # logged before it is saved
    with monkeypatch.context() as patched:
        patched.setattr(PrismTrainer, "log", interrupted)
        assert run(recipe, "--save_steps", "3") == 130
        assert "stopped before a checkpoint was written; the same command starts over, and a" in capsys.readouterr().err
        stop_at = 4
        assert run(recipe, "--save_steps", "3", "--fresh") == 130
    folder = recipe.parent / "run"
    said = f"train: stopped; {folder / 'checkpoint-3'} is whole, and the same command, without `--fresh`, goes on from there.\n"
    assert capsys.readouterr().err.endswith(f"\nprism-plugin {said}")
    assert not list(folder.glob("*.lock"))
    assert run(recipe, "--save_steps", "3") == 0
    assert "steps" in capsys.readouterr().out


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_the_verb_is_still_imported(monkeypatch, capsys):
    monkeypatch.setattr("prism_plugin.cli.main.importlib.import_module", lambda _: signal.raise_signal(signal.SIGINT))
    assert cli.main(["train", "--recipe", "x"]) == 130
    assert_sentence(capsys.readouterr(), "train: stopped before anything was done.")


@pytest.mark.usefixtures("interruptible")
def test_sample_that_is_interrupted_says_how_to_go_on(writer, monkeypatch, capsys):
    monkeypatch.setattr(show.time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    assert cli.main([*SAMPLE, str(writer), "--watch"]) == 130
    said = "stopped; nothing was printed or written, and the same command with the same `--seed` gives the same texts."
    assert capsys.readouterr().err.endswith(f"\nprism-plugin sample: {said}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"], ["sample"], ["eval"]])
def test_a_pipe_whose_reader_left_ends_in_silence(writer, monkeypatch, capsys, arguments):
    if arguments == ["sample"]:
        arguments = [*SAMPLE, str(writer)]
    if arguments == ["eval"]:  # prints by rich, which has an end of its own for this
        rows = writer.parent / "rows.txt"
        rows.write_text("the cat sat")
        arguments = ["eval", "quality", "--adapter", str(writer), "--data", str(rows), "--on", "states", "--masked", "0.5"]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:  # noqa: PTH123  a descriptor has no path
        monkeypatch.setattr("sys.stdout", closed)
        assert cli.main(arguments) == 141
    assert "prism-plugin" not in capsys.readouterr().err


def test_a_pipe_that_is_not_ours_is_an_error(monkeypatch, capsys):
    def broken(_):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(sample, "run", broken)
    assert cli.main(["sample", "a", "--adapter", "x"]) == 2
    assert_sentence(capsys.readouterr(), "sample: Broken pipe; `--traceback` shows how it came to that.")


def test_an_answer_that_the_terminal_cannot_show_is_not_lost(monkeypatch, tmp_path):
    monkeypatch.setattr(sample, "run", lambda _: print("\u00e9") or 0)
    with (tmp_path / "out").open("w", encoding="ascii") as ascii_only:
        monkeypatch.setattr("sys.stdout", ascii_only)
        assert cli.main(["sample", "a", "--adapter", "x"]) == 0
    assert (tmp_path / "out").read_text() == "\\xe9\n"


@pytest.mark.parametrize("task", [["sudoku"], ["quality", "--on", "drafts"]])
def test_a_traceback_can_be_asked_of_every_task(task, capsys):
    assert cli.main(["eval", *task, "--adapter", "./none", "--data", "none.jsonl", "--traceback"]) == 2
    told = capsys.readouterr().err
    assert "nothing reads" not in told
    assert "Traceback" in told
