import pytest
import torch
from small_traces import MASK, NEW, PROMPT

from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone, tiny_tokenizer


@pytest.fixture(scope="session")
def model():
    """A tiny model whose random head makes qualities that differ."""
    torch.manual_seed(0)
    backbone = tiny_backbone(max_position_embeddings=PROMPT + NEW)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=MASK), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        for parameter in model.quality_head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model
