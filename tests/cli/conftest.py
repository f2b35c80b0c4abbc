import pytest
import torch

from prism_plugin.backbones import load_backbone
from prism_plugin.modeling import attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A saved adapter of a text model, with a sampler."""
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    tiny_backbone().save_pretrained(folder / "backbone")
    tiny_tokenizer().save_pretrained(folder / "backbone")
    model = attach_quality_head(load_backbone(folder / "backbone"), tokenizer=tiny_tokenizer())
    model.save_pretrained(folder / "weights")
    RemaskingSampler.from_preset("confidence", model, num_steps=4).save_pretrained(folder / "weights")
    return folder / "weights"
