"""A family whose attention goes by blocks, in transformers' own Llama."""

from dataclasses import replace

import torch

from prism_plugin.backbones import get_spec_by_model_type
from prism_plugin.backbones import spec as known_specs
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

BLOCK, MASK = 4, 31


def block_model(monkeypatch):
    """A tiny model that sees a block of 4 positions and those before, with random weights that matter."""
    spec = replace(get_spec_by_model_type("llama"), attention_mask="4d", attention_block_length=BLOCK)
    monkeypatch.setitem(known_specs._SPECS, "llama", spec)
    torch.manual_seed(0)
    model = attach_quality_head(tiny_backbone("llama"), PrismConfig(mask_token_id=MASK), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 3 * parameter.shape[-1] ** -0.5)
    return model.eval()
