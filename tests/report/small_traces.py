"""What the tests of this folder generate, so that there is something to look at."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prism_plugin.core import EvenSchedule, QualityRemasking, RandomUnmasking
from prism_plugin.sampling import RemaskingSampler

MASK = 31
PROMPT, NEW = 20, 512  # of the long text
RULES = {"unmasking": RandomUnmasking(), "remasking": QualityRemasking(), "schedule": EvenSchedule(num_remask=2)}
# two rows of different length, one with a token between its masks and one padded on the left
IDS = torch.tensor([[5, 6, MASK, MASK, 7, MASK, MASK, MASK, 8], [0, 0, 0, 9, MASK, 10, MASK, MASK, MASK]])
ATTENTION_MASK = torch.tensor([[1] * 9, [0, 0, 0] + [1] * 6])


def sampler_of(model, **settings):
    return RemaskingSampler(model, num_steps=6, temperature=1.0, **RULES | settings)


def sample_two(model, **settings):
    """Fill `IDS`, taking tokens back on the way."""
    return sampler_of(model, **settings).infill(
        IDS, ATTENTION_MASK, generator=torch.Generator().manual_seed(1), return_trace=True
    )


def tokenizer_of(vocabulary, decoder):
    """A tokenizer of a few words, the first unknown and one of them [MASK]."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=vocabulary[0], mask_token="[MASK]")
