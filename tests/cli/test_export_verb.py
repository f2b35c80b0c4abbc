"""`prism-plugin export` as a user calls it: one object with --json, one sentence and exit code 2 for a mistake."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from remote_families import STANDIN_FAMILIES
from transformers.utils import logging as transformers_logging

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

PRESET = ["--preset", "prism", "--num-steps", "3", "--set", "num_remask=1"]


@pytest.fixture(autouse=True)
def _without_the_bar_of_loading():
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A saved adapter without a sampler, as fresh from training, and its backbone beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    tiny_backbone().save_pretrained(folder / "backbone")
    model = attach_quality_head(load_backbone(folder / "backbone"), lora=LoraConfig(r=2), tokenizer=tiny_tokenizer())
    model.save_pretrained(folder / "weights")
    return folder / "weights"


def test_export_prints_one_object(adapter, tmp_path, capsys):
    assert cli.main(["export", "--adapter", str(adapter), "--output", str(tmp_path / "out"), *PRESET, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["output"] == str(tmp_path / "out")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(printed["files"]) == written
    assert {"model.safetensors", "custom_generate/generate.py", "tokenizer.json"} <= written
    assert printed["sampler"]["schedule"]["num_remask"] == 1
    assert RemaskingSampler.from_pretrained(tmp_path / "out").to_dict() == printed["sampler"]


def test_export_says_where_to_read_on(adapter, tmp_path, capsys):
    assert cli.main(["export", "--adapter", str(adapter), "--output", str(tmp_path / "out"), *PRESET]) == 0
    assert capsys.readouterr().out.endswith("; README.md says how to run it\n")


def test_export_uploads(adapter, tmp_path, capsys, monkeypatch):
    made = []

    def create_repo(self, repo_id, **options):
        made.append((repo_id, options))
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: {"name": "me"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    uploaded = SimpleNamespace(commit_url="https://huggingface.co/me/sampler/commit/1")
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: uploaded)
    arguments = ["export", "--adapter", str(adapter), "--push-to-hub", "me/sampler", "--private", *PRESET]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == "https://huggingface.co/me/sampler/commit/1\n"
    assert made == [("me/sampler", {"private": True, "exist_ok": True})]
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["commit"].endswith("/commit/1")


MISTAKES = {
    "nowhere": (PRESET, "writes to `--output DIR` or to `--push-to-hub REPO_ID`; give one of the two"),
    "both": (["--output", "out", "--push-to-hub", "a/b", *PRESET], "give one of the two"),
    "private": (["--output", "out", "--private", *PRESET], "`--private` would be ignored without `--push-to-hub`"),
    "no sampler": (["--output", "out"], "has no sampler_config.json, as fresh from training"),
    "preset": (["--output", "out", "--preset", "prims", "--num-steps", "3"], "did you mean 'prism'?"),
    "local": (["--output", "out", "--no-merge", *PRESET], "this one is the local folder"),
    "twice": (
        ["--output", "out", *PRESET, "--set", "num_remask=2"],
        "`--set` takes each setting once, found 'num_remask' twice",
    ),
    "full": (["--output", ".", *PRESET], "needs a folder that is empty or not there"),
    "in the adapter": (["--output", "{adapter}/out", *PRESET], "`--output` must be apart from all that is read, but "),
    "in the way": (["--output", "notes.txt/out", *PRESET], "no export can be written to notes.txt/out/prism_config.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(adapter, tmp_path, capsys, monkeypatch, mistake):
    options, words = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["export", "--adapter", str(adapter), *(option.format(adapter=adapter) for option in options)]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("prism-plugin export: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("mistake", ["full", "in the way"])
def test_where_nothing_can_be_written_no_model_is_loaded(adapter, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(PrismModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    assert cli.main(["export", "--adapter", str(adapter), *MISTAKES[mistake][0]]) == 2


def test_a_backbone_with_its_own_code_needs_consent(tmp_path, capsys):
    STANDIN_FAMILIES["llada"].save(tmp_path / "backbone")
    model = attach_quality_head(load_backbone(tmp_path / "backbone", trust_remote_code=True), PrismConfig())
    model.save_pretrained(tmp_path / "weights")
    arguments = ["export", "--adapter", str(tmp_path / "weights"), "--output", str(tmp_path / "out"), *PRESET]
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert "brings its own Python code, which runs only with your consent" in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert cli.main([*arguments, "--trust-remote-code"]) == 0
    assert (tmp_path / "out" / "modeling_llada.py").is_file()
    assert "load_backbone.py" in (tmp_path / "out" / "README.md").read_text()
