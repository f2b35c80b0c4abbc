"""A world of three letters whose posterior is known exactly, and what its texts are worth."""

from dataclasses import dataclass

import torch
from test_exact_joint import POSTERIORS, TABLE

from prism_plugin.core import RandomUnmasking
from prism_plugin.core.selection import true_places
from prism_plugin.decoding import Seen
from prism_plugin.decoding.looks import Logits
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone

LENGTH, LETTERS = TABLE.length, TABLE.num_letters
WORTH = torch.tensor([[0.9, -0.4, 0.1], [-0.8, 0.5, 0.3], [0.2, 0.6, -0.7]])


@dataclass(frozen=True)
class ExactLook:
    """The exact posterior of the table, whatever the model."""

    def __call__(self, model, state, want, memory):
        index = true_places(want.masked, want.num_masked)
        rows = POSTERIORS[TABLE.index_of(state.tokens)].flatten(0, 1)[index]
        return Seen(Logits(rows, index), None, None), memory


def worth_of(tokens):
    """Of the letters that stand, and a little more where two that agree stand side by side."""
    padded = torch.cat((WORTH, torch.zeros(LENGTH, 1)), dim=1)
    own = padded[torch.arange(LENGTH), tokens].sum(-1)
    return own + 0.5 * ((tokens[:, :-1] == tokens[:, 1:]) & (tokens[:, 1:] != LETTERS)).sum(-1)


def exact_sampler(trajectory):
    """Random order, one letter a look, each drawn from the exact posterior."""
    model = attach_quality_head(tiny_backbone(vocab_size=LETTERS + 1), PrismConfig(mask_token_id=LETTERS))
    rules = {"unmasking": RandomUnmasking(), "temperature": 1.0, "look": ExactLook()}
    return RemaskingSampler(model, num_steps=LENGTH, trajectory=trajectory, **rules)
