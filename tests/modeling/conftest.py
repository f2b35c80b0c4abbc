import pytest
import torch
from moved_weights import trained
from peft import LoraConfig

from prism_plugin.backbones import load_backbone
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone, tiny_tokenizer


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def project(tmp_path):
    """A folder with a backbone, and beside it the weights of a head that was trained on it."""
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    model = attach_quality_head(load_backbone(tmp_path / "backbone"), lora=LoraConfig(r=2), tokenizer=tiny_tokenizer())
    trained(model).save_pretrained(tmp_path / "weights", figures={"quality AUROC": 0.91234, "steps": 300})
    return tmp_path


@pytest.fixture
def ids():
    return torch.randint(2, 31, (3, 7))


@pytest.fixture
def lora_model():
    """A tiny BERT with LoRA, a head and a tokenizer, moved away from its initial values."""
    model = attach_quality_head(tiny_backbone(), PrismConfig(), lora=LoraConfig(r=2), tokenizer=tiny_tokenizer())
    return trained(model)
