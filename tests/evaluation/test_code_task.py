"""The task `code`: both forms of rows, answers cut and judged in processes of their own, and what those cannot do."""

import json
import string
import tempfile
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.evaluation.tasks import Code, code_confined, code_running
from prism_plugin.evaluation.tasks.code_running import MAX_FILE_BYTES, Outcome, require_runs, run_confined
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone

ADD = {
    "task_id": "Test/0",
    "prompt": 'def add(a, b):\n    """Add."""\n',
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
}
TWICE = {"task_id": 7, "text": "Write a function twice.", "test_list": ["assert twice(2) == 4", "assert twice('a') == 'aa'"]}
LIMITS = {"seconds": 30.0, "memory_mb": 256}


@pytest.fixture(scope="module")
def model():
    """Of a tokenizer of single characters, line ends and signs too."""
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[EOS]", *string.printable, "[MASK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", mask_token="[MASK]")
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=len(vocabulary), max_position_embeddings=256)
    return attach_quality_head(backbone, PrismConfig(mask_token_id=len(vocabulary) - 1), tokenizer=fast)


def rows_of(tmp_path, *rows, **settings):
    file = tmp_path / "functions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = Code(allow_code_execution=True, **settings)
    return task, task.rows(file)


def test_answers_are_run_and_judged(tmp_path, model):
    task, rows = rows_of(tmp_path, ADD, ADD, ADD, TWICE, max_new_tokens=60)
    ids, mask = task.canvas(rows, model)
    answers = [
        "    return a + b\nprint(",
        "    return a - b\n",
        "    return a +",
        "def twice(a):\n    return a + a\n\nassert False",
    ]
    filled = torch.where(ids == model.mask_token_id, model.tokenizer.eos_token_id, ids)
    for row, answer in enumerate(answers):
        first = int((ids[row] == model.mask_token_id).nonzero()[0])
        filled[row, first : first + len(answer)] = torch.tensor(model.tokenizer(answer)["input_ids"])
    figures = task.judge(rows, filled, model)
    assert list(figures) == list(Code.figures)
    assert figures["success"].total.tolist() == [1, 0, 0, 1]
    assert figures["parses"].total.tolist() == [1, 1, 0, 1]
    assert mask.sum(-1).tolist() == [len(row.prompt) + 60 for row in rows]


def test_known_rows_are_the_solutions(tmp_path):
    task, rows = rows_of(tmp_path, ADD, TWICE)
    assert task.known(rows[:1]) == [{"prompt": ADD["prompt"], "completion": ADD["canonical_solution"]}]
    with pytest.raises(DataFormatError, match=r"row 2 \(7\) must say a solution, `canonical_solution` or `code`, found none"):
        task.known(rows)


# What hostile programs do, none of which passes; each ends, as this test does.
HOSTILE = {
    "an endless loop of output": "while True:\n    print('x' * 10_000)",
    "a flood of the pipe, which then waits": "import os\nwhile True:\n    os.write(3, b'x' * 10_000)",
}
REFUSED = {
    "a fork bomb": "import os\nfor _ in range(10):\n    os.fork()",
    "a memory hog": "x = 'x' * 2**32",
    "ending early": "import sys\nsys.exit(0)",
    "more rights": "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (100, 100))",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_what_does_not_end_is_ended(program):
    assert not run_confined(program, "", seconds=0.2, memory_mb=256).passes


@pytest.mark.parametrize("program", REFUSED.values(), ids=REFUSED)
def test_what_asks_for_too_much_is_refused(program):
    assert run_confined(program, "", **LIMITS) == Outcome(parses=True, passes=False)


def test_a_file_outside_is_small_or_not_there_and_the_folder_goes(tmp_path, monkeypatch):
    """A user's own process may write where the user may; root's becomes one of a user that owns nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outside = tmp_path / "outside"
    program = f"open('here', 'w').write('x')\nopen({str(outside)!r}, 'w').write('x' * 2**24)"
    assert run_confined(program, "", **LIMITS) == Outcome(parses=True, passes=False)
    assert not outside.exists() or outside.stat().st_size <= MAX_FILE_BYTES
    assert not list(tmp_path.glob("prism-code-*"))


def test_what_it_started_does_not_outlive_it(monkeypatch):
    monkeypatch.setattr(code_running, "MAX_PROCESSES", 10_000)
    assert run_confined("import os, time\nif os.fork() == 0:\n    time.sleep(1000)", "", **LIMITS).passes
    name = code_confined.__file__.encode()
    for _ in range(100):
        own = [path for path in Path("/proc").glob("[0-9]*/cmdline") if name in read_if_there(path)]
        if not own:
            break
        time.sleep(0.05)
    assert not own


def read_if_there(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_an_answer_that_breaks_the_parser_does_not_parse():
    for program in ("\0", "\ud800 = 1"):
        assert run_confined(program, "", **LIMITS) == Outcome(parses=False, passes=False)


def test_nothing_is_run_without_leave(tmp_path):
    for ask in (lambda: Code().rows(tmp_path / "none.jsonl"), lambda: Code().outcome(None, "")):
        with pytest.raises(ConfigurationError, match="allow it with `allow_code_execution=True`"):
            ask()


def test_limits_in_which_python_cannot_start_are_refused():
    with pytest.raises(ConfigurationError, match="must pass within `seconds` 1e-09 and `memory_mb` 256, and does not"):
        require_runs(seconds=1e-9, memory_mb=256)  # over before the first look, however late a busy machine looks


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "def f():\n"}, "row 1: a function needs `prompt`, `test` and `entry_point` .*, found prompt"),
        ({**ADD, "entry_point": "a b"}, r"row 1 \(Test/0\): `entry_point` must name a function, found 'a b'"),
        ({**ADD, "test": "def check("}, r"row 1 \(Test/0\): tests must be Python, but .* \(<unknown>, line 1\)"),
        ({**ADD, "prompt": 3}, r"row 1 \(Test/0\): `prompt` must be text, found int"),
        ({**TWICE, "test_list": []}, r"row 1 \(7\): `test_list` must hold a test, found none"),
        ({**TWICE, "test_list": "assert x"}, r"row 1 \(7\): `test_list` must list texts, found 'assert x'"),
    ],
)
def test_bad_rows_are_refused(tmp_path, row, words):
    with pytest.raises(DataFormatError, match=words):
        rows_of(tmp_path, row)


@pytest.mark.parametrize(("name", "value"), [("max_new_tokens", 0), ("memory_mb", 0), ("seconds", 0.0)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"`{name}`.*must be .*got {value}|`{name}`.*found {value}"):
        Code(**{name: value})
