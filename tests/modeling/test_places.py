"""What a model reads, and what others wrote, stays as it is."""

import pytest
import torch

from prism_plugin.backbones import load_backbone
from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.places import require_apart
from prism_plugin.sampling import RemaskingSampler, export_sampler
from prism_plugin.testing import tiny_tokenizer


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("settings", [{}, {"train_backbone": True}])
def test_a_model_is_not_saved_over_its_backbone(project, settings):
    (project / "backbone" / "README.md").write_text("mine")
    (project / "link").symlink_to("backbone")
    before = contents(project)
    model = attach_quality_head(load_backbone(project / "backbone"), PrismConfig(mask_token_id=31, **settings))
    for name in ("backbone", "link", "weights/../backbone"):
        with pytest.raises(SavingError, match=f"must not be saved over its backbone, which it reads from .*{name}; choose"):
            model.save_pretrained(project / name)
    assert contents(project) == before
    model.save_pretrained(project / "backbone" / "head")  # a folder of its own, that can move with the backbone
    assert PrismModel.from_pretrained(project / "backbone" / "head")


def test_a_head_does_not_take_the_place_of_the_one_that_its_backbone_was_trained_with(tmp_path, project):
    whole = attach_quality_head(load_backbone(project / "backbone"), PrismConfig(mask_token_id=31, train_backbone=True))
    whole.save_pretrained(tmp_path / "whole")
    again = PrismModel.from_pretrained(tmp_path / "whole", is_trainable=True)
    with torch.no_grad():
        again.get_output_embeddings().bias += 1
    again.save_pretrained(tmp_path / "whole")
    assert PrismModel.from_pretrained(tmp_path / "whole").get_output_embeddings().bias.min() > 0.5
    before = contents(tmp_path / "whole")
    other = attach_quality_head(load_backbone(tmp_path / "whole"), PrismConfig(mask_token_id=31), tokenizer=tiny_tokenizer())
    with pytest.raises(SavingError, match="must not be saved over its backbone"):
        other.save_pretrained(tmp_path / "whole")
    assert contents(tmp_path / "whole") == before


@pytest.mark.parametrize("name", ["README.md", "config.json", "adapter_config.json", "model-00001-of-00002.safetensors"])
def test_files_of_others_stay(lora_model, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(SavingError, match=f"The folder .* holds {name}, which prism_plugin did not write and would write over"):
        lora_model.save_pretrained(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_an_export_is_apart_from_what_it_is_made_of(project):
    sampler = RemaskingSampler(PrismModel.from_pretrained(project / "weights"), num_steps=2)
    before = contents(project)
    for name, what in (("weights/export", "the adapter that was loaded"), ("backbone/export", "the folder of the backbone")):
        with pytest.raises(ConfigurationError, match=f"An export must be apart .*{name} lies in {what}, "):
            export_sampler(sampler, project / name)
    assert contents(project) == before


def test_links_out_of_a_folder_that_is_read_are_followed(tmp_path):
    (tmp_path / "backbone").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_text("")
    reads = {"the backbone": tmp_path / "backbone", "nothing": None, "an id": "org/name", "no name": ""}
    require_apart(tmp_path / "run", reads, "it")
    (tmp_path / "backbone" / "model.safetensors").symlink_to("../run/model.safetensors")
    with pytest.raises(ConfigurationError, match=r"it must be apart from all that is read, but .*run holds the backbone, "):
        require_apart(tmp_path / "run", reads, "it")
