"""A tiny real model that listens to its input and is right now and then, and rows for it."""

import torch

from prism_plugin.data import prepare_rows
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

MASK = 31


def build_model(**config):
    """A BERT that mostly writes a, b, c or d, with a random head."""
    torch.manual_seed(0)
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=MASK, **config), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        for parameter in model.quality_head.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
        for parameter in model.plain_backbone.bert.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
        model.get_output_embeddings().bias[3:7] += 6
    return model.eval()


def raw_rows(count, seed=0):
    """Prompts and completions of a to d, of different length."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        letters = "".join("abcd"[one] for one in torch.randint(0, 4, (8 + index % 5,), generator=generator).tolist())
        rows.append({"prompt": letters[:3], "completion": letters[3:]})
    return rows


def make_rows(count, seed=0):
    return prepare_rows(raw_rows(count, seed), tiny_tokenizer(), mask_token_id=MASK)
