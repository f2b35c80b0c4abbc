"""A saved head is loaded onto the devices and in the dtype that are asked for; what is loaded already is never moved."""

import pytest
import torch
from moved_weights import trained
from peft import LoraConfig

from prism_plugin.backbones import load_backbone
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

OFFLOADED = {"bert.embeddings": "cpu", "bert.encoder": "disk", "cls": "cpu"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with a head alone, a head and LoRA, and a head on merged weights, each with a sampler."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    tiny_backbone(num_hidden_layers=1).save_pretrained(folder / "backbone")
    for name, lora in {"head": None, "lora": LoraConfig(r=2), "merged": LoraConfig(r=2)}.items():
        model = trained(attach_quality_head(load_backbone(folder / "backbone"), lora=lora, tokenizer=tiny_tokenizer()))
        if name == "merged":
            model.merge_and_unload()
        model.save_pretrained(folder / name)
        RemaskingSampler(model, num_steps=3).save_pretrained(folder / name)
    return folder


def dtypes_of(model):
    of = {"backbone": set(), "lora": set(), "head": set()}
    for name, parameter in model.named_parameters():
        part = "head" if name.startswith("quality_head.") else "lora" if "lora_" in name else "backbone"
        of[part].add(parameter.dtype)
    return of


@pytest.mark.parametrize("name", ["head", "lora", "merged"])
def test_the_dtype_is_that_of_the_backbone_alone(saved, name, ids):
    model = PrismModel.from_pretrained(saved / name, dtype="bfloat16", device_map="cpu")
    expected = {"backbone": {torch.bfloat16}, "head": {torch.float32}, "lora": {torch.float32} if name == "lora" else set()}
    assert dtypes_of(model) == expected
    output = model(ids, logits_at=ids > 4)
    assert output.logits.dtype == torch.bfloat16
    assert output.quality_logits.dtype == torch.float32
    as_saved = PrismModel.from_pretrained(saved / name, dtype="auto", device_map="auto")
    assert dtypes_of(as_saved)["backbone"] == {torch.float32}
    torch.testing.assert_close(output.quality_logits, as_saved(ids).quality_logits, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", ["head", "merged"])
def test_offloaded_weights_give_what_all_of_them_give(saved, name, ids):
    plain = RemaskingSampler.from_pretrained(saved / name)
    offloaded = RemaskingSampler.from_pretrained(saved / name, device_map=OFFLOADED)
    assert any(parameter.is_meta for parameter in offloaded.model.parameters())
    assert not any(parameter.is_meta for parameter in offloaded.model.quality_head.parameters())
    assert offloaded.model.hf_device_map == OFFLOADED
    torch.testing.assert_close(offloaded.model.score(ids), plain.model.score(ids))
    filled = [sampler.infill(ids.where(ids > 9, 31)).sequences for sampler in (offloaded, plain)]
    assert torch.equal(*filled)


def test_an_adapter_cannot_be_put_on_offloaded_weights(saved):
    with pytest.raises(ConfigurationError, match="`lora` and `train_backbone` need weights that stay on their devices"):
        PrismModel.from_pretrained(saved / "lora", device_map=OFFLOADED)


@pytest.mark.parametrize("given", [{"dtype": "float16"}, {"device_map": "cpu"}])
def test_what_is_loaded_already_is_not_loaded_otherwise(saved, given):
    backbone = load_backbone(saved / "backbone")
    with pytest.raises(ConfigurationError, match="say how a backbone is loaded, but `backbone` brings one that is loaded"):
        PrismModel.from_pretrained(saved / "head", backbone, **given)
    model = PrismModel.from_pretrained(saved / "head", backbone)
    with pytest.raises(ConfigurationError, match="but `model` brings one that is loaded"):
        RemaskingSampler.from_pretrained(saved / "head", model, **given)


@pytest.mark.parametrize("load", [PrismModel.from_pretrained, RemaskingSampler.from_pretrained])
@pytest.mark.parametrize("wrong", [{"dtype": "half-ish"}, {"device_map": "cuda:99"}])
def test_what_cannot_be_is_refused_before_a_folder_is_looked_for(load, wrong):
    with pytest.raises(ConfigurationError, match=f"`{next(iter(wrong))}` must be"):
        load("./nowhere", **wrong)
