"""`--device`, `--dtype`, `--batch-size`: wrong ones are one sentence before anything is loaded, and batches change nothing."""

import json

import pytest
import torch
from pages import data_of
from remote_families import STANDIN_FAMILIES
from safetensors import safe_open

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.cli import sample
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_tokenizer

VERBS = {
    "sample": ["sample", "a[MASK]", "--adapter", "x"],
    "eval sudoku": ["eval", "sudoku", "--adapter", "x", "--data", "x"],
    "eval quality": ["eval", "quality", "--adapter", "x", "--data", "x"],
    "export": ["export", "--adapter", "x", "--output", "out"],
}


def no_model(monkeypatch):
    monkeypatch.setattr(PrismModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("there", [(), ("cuda:0", "cuda:1")], ids=str)
def test_a_device_that_is_not_there_is_known_before_anything_is_loaded(verb, there, monkeypatch, capsys):
    no_model(monkeypatch)
    monkeypatch.setattr("prism_plugin.backbones.devices.accelerators", lambda: there)
    wrong = "cuda:2" if there else "cuda"
    assert cli.main([*VERBS[verb], "--device", wrong]) == 2
    listed = ", ".join(("cpu", *there))
    expected = f"`--device` must be a device that torch finds on this machine, {listed}, got '{wrong}'.\n"
    assert capsys.readouterr().err == f"prism-plugin {verb.split()[0]}: {expected}"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "export"])
def test_a_batch_has_at_least_one_row(verb, monkeypatch, capsys):
    no_model(monkeypatch)
    assert cli.main([*VERBS[verb], "--batch-size", "0"]) == 2
    assert capsys.readouterr().err == f"prism-plugin {verb.split()[0]}: `--batch-size` must be at least 1, got 0.\n"


@pytest.mark.parametrize("verb", VERBS)
def test_other_dtypes_are_refused(verb, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*VERBS[verb], "--dtype", "float8"])
    assert "invalid choice: 'float8'" in capsys.readouterr().err


def test_an_export_is_in_the_dtype_that_was_asked_for(writer, tmp_path, capsys):
    arguments = ["export", "--adapter", str(writer), "--dtype", "bfloat16"]
    assert cli.main([*arguments, "--output", str(tmp_path / "out"), "--no-merge"]) == 2
    assert "`--dtype` is of the weights that are written, and `--no-merge` writes none" in capsys.readouterr().err
    assert cli.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    with safe_open(tmp_path / "out" / "quality_head.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F32"}  # noqa: SIM118
    assert RemaskingSampler.from_pretrained(tmp_path / "out").model.dtype == torch.bfloat16


TEXTS = ["the [MASK][MASK]t", "a dog", "[MASK] ran to[MASK][MASK]", "so[MASK]", "[MASK][MASK][MASK]"]
CHANCE = ["--preset", "prism", "--num-steps", "4", "--set", "temperature=1.0", "--set", "num_remask=1"]


def test_batches_change_neither_answers_nor_their_order(writer, tmp_path, capsys):
    arguments = ["sample", *TEXTS, "--adapter", str(writer), *CHANCE, "--json"]
    given, pages = [], []
    for size in ("1", "3", "32"):
        page = tmp_path / f"{size}.html"
        assert cli.main([*arguments, "--batch-size", size, "--report", str(page), "--watch"]) == 0
        printed = capsys.readouterr()
        given.append(json.loads(printed.out))
        pages.append(data_of(page))
        watched = [line for line in printed.err.splitlines() if line.startswith("text ")]
        # those of one batch are told look by look
        assert sorted(line.split(",")[0] for line in watched) == sorted(
            f"text {number}" for number, row in enumerate(given[-1]["rows"], 1) for _ in range(row["num_forward_passes"])
        )
        assert printed.err.count("marks: ") == 1
    assert given[0] == given[1] == given[2]
    assert pages[0] == pages[1] == pages[2]
    assert [row["text"] for row in given[0]["rows"]] == TEXTS
    assert [row["num_forward_passes"] > 0 for row in given[0]["rows"]] == [True, False, True, True, True]
    assert [generation["name"][:3] for generation in pages[0]] == ["1: ", "3: ", "4: ", "5: "]


def test_a_text_that_cannot_be_filled_is_found_before_the_first_batch(writer, capsys, monkeypatch):
    monkeypatch.setattr(RemaskingSampler, "infill", lambda *_, **__: pytest.fail("a batch was filled"))
    assert cli.main(["sample", "a[MASK]", "a" * 65 + "[MASK]", "--adapter", str(writer), "--batch-size", "1"]) == 2
    assert "a row must have at most 65 tokens, as many as bert has positions for, found 66" in capsys.readouterr().err


def test_progress_is_shown_over_batches_and_not_into_what_is_piped(writer, capsys):
    arguments = ["sample", "a[MASK]", "b[MASK]", "c[MASK]", "--adapter", str(writer)]
    assert cli.main([*arguments, "--batch-size", "2"]) == 0
    printed = capsys.readouterr()
    assert "sampling" in printed.err
    assert "2/2 batches" in printed.err
    assert printed.out.count("\n") == 3
    assert cli.main(arguments) == 0
    assert "sampling" not in capsys.readouterr().err


def test_families_without_padding_take_texts_of_any_length(tmp_path, capsys):
    """Rows of a batch are then of one length."""
    STANDIN_FAMILIES["mdlm"].save(tmp_path / "backbone")
    backbone = load_backbone(tmp_path / "backbone", trust_remote_code=True)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=31), tokenizer=tiny_tokenizer())
    assert model.spec.attention_mask == "none"
    model.save_pretrained(tmp_path / "weights")
    RemaskingSampler(model, num_steps=2).save_pretrained(tmp_path / "weights")
    texts = ["a[MASK]", "a dog", "b[MASK]", "the[MASK]", "c[MASK]"]
    arguments = ["sample", "--adapter", str(tmp_path / "weights"), "--trust-remote-code", "--json"]
    assert cli.main([*arguments, *texts]) == 0
    together = json.loads(capsys.readouterr().out)["rows"]
    assert [row["text"] for row in together] == texts
    assert cli.main([*arguments, *texts, "--batch-size", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == together


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
            [],
            "(CUDA out of memory); give a smaller `--batch-size`, or `--dtype bfloat16`, or another `--device`.",
        ),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
            ["--batch-size", "1", "--dtype", "float16"],
            "(MPS backend out of memory (MPS allocated: 8.00 GB)); give another `--device`.",
        ),
    ],
)
def test_too_little_memory_is_one_sentence(monkeypatch, capsys, error, options, words):
    def short(_):
        raise error

    monkeypatch.setattr(sample, "run", short)
    assert cli.main(["sample", "a", "--adapter", "x", *options]) == 2
    assert capsys.readouterr().err == f"prism-plugin sample: the memory of the device does not suffice {words}\n"
