"""A config that transformers would not write is found before the work, or made writable; what was half-built goes away."""

import json

import pytest
import torch
from peft import LoraConfig
from remote_families import STANDIN_FAMILIES
from saved_folders import names
from whole_state import differences, whole_state

from prism_plugin.backbones import load_backbone
from prism_plugin.errors import BackboneError, SavingError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler, export_sampler
from prism_plugin.testing import tiny_backbone
from prism_plugin.training import PrismTrainer, PrismTrainingArguments
from prism_plugin.writing import staged_files, write_text

MASK = PrismConfig(mask_token_id=31)
WHOLE = PrismConfig(mask_token_id=31, train_backbone=True)
ROWS = [{"example_id": number, "input_ids": [3, 4, 5, 6], "maskable": [False, True, True, True]} for number in range(4)]


class UnwritableError(Exception):
    """Of somebody else's code."""


def with_a_setting_of_generation():
    backbone = tiny_backbone()
    backbone.config.max_length = 20
    return backbone


def with_what_is_no_json():
    backbone = tiny_backbone()
    backbone.config.sizes = {1, 2}
    return backbone


def with_bad_generation_settings():
    backbone = tiny_backbone("llama")
    backbone.generation_config.temperature = 0.5  # without `do_sample`
    backbone.generation_config.num_return_sequences = 3
    return backbone


UNWRITABLE = {
    "generation": (with_a_setting_of_generation, r"its config holds max_length, which .* `del backbone.config.max_length`"),
    "json": (with_what_is_no_json, r"would not write its config \(.*not JSON serializable.*correct `backbone.config`"),
    "generation config": (with_bad_generation_settings, r"would not write its config \(.*correct `backbone.config`"),
}


def run(model, folder, **settings):
    args = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True} | settings
    return PrismTrainer(model, PrismTrainingArguments(str(folder), report_to="none", **args), train_dataset=ROWS)


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_backbone_that_is_trained_is_tried_when_it_is_attached(name):
    make, message = UNWRITABLE[name]
    backbone = make()
    state = whole_state(backbone)
    with pytest.raises(BackboneError, match=message) as raised:
        attach_quality_head(backbone, WHOLE)
    assert "\n" not in str(raised.value)
    assert differences(state, whole_state(backbone)) == []
    attach_quality_head(backbone, MASK)  # a frozen one is not written


@pytest.mark.parametrize("lora", [LoraConfig(r=2), None], ids=["merged", "frozen"])
def test_an_export_finds_it_before_the_work(tmp_path, monkeypatch, lora):
    model = attach_quality_head(with_a_setting_of_generation(), MASK, lora=lora)
    monkeypatch.setattr("copy.deepcopy", lambda *_: pytest.fail("the model was copied in vain"), raising=True)
    with pytest.raises(BackboneError, match="its config holds max_length"):
        export_sampler(RemaskingSampler.from_preset("random", model, num_steps=2), tmp_path / "out")
    assert names(tmp_path) == set()


def test_a_merged_model_is_refused_before_anything_is_written_or_trained(tmp_path):
    model = attach_quality_head(with_a_setting_of_generation(), MASK, lora=LoraConfig(r=2))
    model.merge_and_unload()
    with pytest.raises(BackboneError, match="its config holds max_length"):
        model.save_pretrained(tmp_path / "deep" / "out")
    with pytest.raises(BackboneError, match="its config holds max_length"):
        run(model, tmp_path / "run")
    assert names(tmp_path) == set()


def test_settings_that_a_repositorys_config_names_itself_are_saved(tmp_path):
    folder = tmp_path / "mdlm"
    STANDIN_FAMILIES["mdlm"].save(folder)
    code = folder / "configuration_mdlm.py"
    text = code.read_text(encoding="utf-8").replace("vocab_size=32,", "vocab_size=32, max_length=64,", 1)
    code.write_text(text.replace("self.n_heads", "self.max_length = max_length\n        self.n_heads", 1), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"max_length": 48}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = attach_quality_head(load_backbone(folder, trust_remote_code=True), WHOLE)
    assert model.config.max_length == 48
    model.save_pretrained(tmp_path / "saved")
    again = PrismModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert again.config.max_length == 48
    again.config.top_k = 5  # nobody's
    with pytest.raises(BackboneError, match="its config holds top_k, which"):
        again.save_pretrained(tmp_path / "other")


def test_whatever_stops_a_checkpoint_leaves_no_half_of_it(tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    trainer = run(attach_quality_head(tiny_backbone(), MASK, lora=LoraConfig(r=2)), tmp_path / "run", save_strategy="steps")
    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert names(tmp_path / "run") == set()


@pytest.mark.parametrize("error", [UnwritableError("theirs"), KeyboardInterrupt()], ids=repr)
def test_whatever_stops_a_file_or_a_folder_leaves_nothing(tmp_path, monkeypatch, error):
    with pytest.raises(type(error)), staged_files(tmp_path / "new" / "deep" / "folder", marker="marker"):
        raise error
    assert names(tmp_path) == set()

    def stop(*args):
        raise error

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(type(error)):
        write_text(tmp_path / "new" / "file", "text")
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_made_is_not_half_made(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SavingError, match="No space left on device"):
        attach_quality_head(tiny_backbone(), MASK).save_pretrained(tmp_path / "new" / "deep" / "folder")
    assert names(tmp_path) == set()
