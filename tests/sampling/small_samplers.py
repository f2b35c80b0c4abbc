"""What the tests of this folder build with."""

import torch

from prism_plugin.core import EvenSchedule, QualityRemasking, RandomUnmasking
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import PRESETS, RemaskingSampler
from prism_plugin.testing import tiny_backbone

MASK = 31
PROMPT, NEW = 4, 7  # lengths of prompts and of what is generated
# Presets that fill each row once; those of several runs have tests of their own.
ONE_RUN = [name for name, preset in PRESETS.items() if preset.trajectory is None]


def build_model(tokenizer=None, **backbone):
    """A tiny real BERT whose quality head is random, so that quality differs between tokens."""
    torch.manual_seed(0)
    model = attach_quality_head(tiny_backbone(**backbone), PrismConfig(mask_token_id=MASK), tokenizer=tokenizer)
    with torch.no_grad():
        for parameter in model.quality_head.parameters():
            parameter.copy_(torch.randn_like(parameter))
        # A fresh model says nearly the same everywhere, and rows that agree would hide mistakes: let it listen to its input.
        for parameter in model.plain_backbone.bert.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
        model.get_input_embeddings().weight[MASK] = 0
    return model


def prompts(batch, length, seed=0):
    return torch.randint(3, MASK, (batch, length), generator=torch.Generator().manual_seed(seed))


def masked_request(rows=3, new=8):
    """Prompts of 4 tokens with masks behind."""
    return torch.cat((prompts(rows, 4), torch.full((rows, new), MASK)), dim=1)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def confident(model, num_steps, num_remask=0, **settings):
    rules = {"remasking": QualityRemasking(), "schedule": EvenSchedule(num_remask)} if num_remask else {}
    return RemaskingSampler(model, num_steps=num_steps, **rules, **settings)


def sampled(model, num_steps, num_remask=2, **settings):
    rules = {"unmasking": RandomUnmasking(), "remasking": QualityRemasking(), "schedule": EvenSchedule(num_remask)}
    return RemaskingSampler(model, num_steps=num_steps, temperature=1.0, **rules, **settings)
