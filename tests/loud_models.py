"""Tiny models whose heads and attention tell positions apart, for tests of what a look computes."""

import torch
from sampling.small_samplers import MASK

from prism_plugin.backbones import load_backbone
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone


def loud(model):
    """The model, with a head whose quality differs between tokens, and attention that listens to more than one of them."""
    with torch.no_grad():
        for parameter in model.quality_head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def build(name="llama", head="mlp", **config):
    torch.manual_seed(0)
    return loud(attach_quality_head(tiny_backbone(name), PrismConfig(mask_token_id=MASK, head=head, **config)))


def remote(family, folder):
    family.save(folder)
    return loud(attach_quality_head(load_backbone(folder, trust_remote_code=True), PrismConfig(mask_token_id=MASK)))


def grouped():
    """Two queries for each key."""
    torch.manual_seed(1)
    backbone = tiny_backbone("qwen3", num_attention_heads=4)
    config = backbone.config
    config.num_key_value_heads = 2
    with torch.no_grad():
        backbone = type(backbone)(config).eval()
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(3 if "proj" in name else 1)
    return loud(attach_quality_head(backbone, PrismConfig(mask_token_id=MASK)))
