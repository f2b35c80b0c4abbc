"""A failed save changes nothing, a good one writes only what is ours, and the hub gets a whole folder."""

import os
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from moved_weights import trained
from saved_folders import ADAPTER, OURS, TOKENIZER, contents, names

from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.persistence import write_files
from prism_plugin.testing import tiny_backbone


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def full_disk_as_tokenizers_tells(*args, **kwargs):
    raise Exception("No space left on device (os error 28)")


FAILING = {
    "head": "prism_plugin.modeling.persistence.save_file",
    "adapter": "peft.peft_model.safe_save_file",
    "card": "pathlib.Path.write_text",
    "flush": "os.fsync",
}


@pytest.mark.parametrize("where", FAILING)
def test_a_full_disk_changes_nothing(project, monkeypatch, where):
    model = trained(PrismModel.from_pretrained(project / "weights", is_trainable=True))
    before = contents(project / "weights")
    monkeypatch.setattr(FAILING[where], full_disk)
    with pytest.raises(SavingError, match=r"Nothing could be saved in '.*weights' \(\[Errno 28\] No space left on device\)"):
        model.save_pretrained(project / "weights")
    with pytest.raises(SavingError, match="No space left on device"):
        model.save_pretrained(project / "new")
    assert contents(project / "weights") == before
    assert names(project) == {"backbone", "weights"}


def test_a_full_disk_under_the_tokenizer_changes_nothing(project, monkeypatch):
    model = PrismModel.from_pretrained(project / "weights")
    before = contents(project / "weights")
    monkeypatch.setattr(type(model.tokenizer), "save_pretrained", full_disk_as_tokenizers_tells)
    with pytest.raises(SavingError, match=r"Nothing could be saved in '.*weights' \(No space left on device \(os error 28\)\)"):
        model.save_pretrained(project / "weights")
    assert contents(project / "weights") == before
    assert names(project) == {"backbone", "weights"}


@pytest.mark.parametrize("moves", range(8))
def test_a_failure_between_two_moves_is_undone(project, monkeypatch, moves):
    model = trained(PrismModel.from_pretrained(project / "weights", is_trainable=True))
    before, replace, done = contents(project / "weights"), os.replace, []

    def refuse_once(self, target):
        done.append(target)
        if len(done) == moves + 1:
            raise PermissionError(13, "Permission denied")
        replace(self, target)
        return Path(target)

    monkeypatch.setattr(Path, "replace", refuse_once)
    with pytest.raises(SavingError, match="Permission denied"):
        model.save_pretrained(project / "weights")
    assert contents(project / "weights") == before


def test_a_place_that_cannot_be_written(lora_model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SavingError, match=r"Nothing could be saved in .*File exists.* choose a folder that can be written"):
        lora_model.save_pretrained(tmp_path / "file" / "weights")
    assert (tmp_path / "file").read_text() == "mine"


def test_other_files_in_the_folder_stay(lora_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    lora_model.save_pretrained(tmp_path)
    assert names(tmp_path) == OURS | ADAPTER | TOKENIZER | {"notes.txt"}


def test_model_card_tells_what_was_measured(project, lora_model, tmp_path):
    card = (project / "weights" / "README.md").read_text()
    assert "| quality AUROC | 0.9123 |\n| steps | 300 |\n" in card
    assert "base_model" not in card, "a folder is no model id"
    lora_model.prism_config = PrismConfig.from_dict(lora_model.prism_config.to_dict() | {"backbone_name": "org/model"})
    lora_model.save_pretrained(tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\nbase_model: org/model\nlibrary_name: peft\ntags:\n- prism\n- masked-diffusion\n---\n")
    assert "None were measured when this was saved." in card


@pytest.mark.parametrize("name", ["{}/vanished/backbone", "~/vanished", "./vanished", "some/folder/vanished"])
def test_a_folder_that_is_gone_is_no_base_model(lora_model, tmp_path, name):
    named = {"backbone_name": name.format(tmp_path)}
    lora_model.prism_config = PrismConfig.from_dict(lora_model.prism_config.to_dict() | named)
    lora_model.save_pretrained(tmp_path / "head")
    assert ModelCard.load(tmp_path / "head" / "README.md").data.base_model is None
    (tmp_path / "whole").mkdir()
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31, **named))
    config = write_files(model, tmp_path / "whole", tmp_path / "whole", with_backbone=True)
    assert (config.backbone_name, config.base_model) == (".", None)
    assert str(tmp_path) not in (tmp_path / "whole" / "prism_config.json").read_text()


def test_push_to_hub_needs_a_backbone_that_others_can_load(project):
    model = PrismModel.from_pretrained(project / "weights")
    with pytest.raises(ConfigurationError, match=r"needs a backbone that others can load, but this one is the local folder"):
        model.push_to_hub("me/head")
