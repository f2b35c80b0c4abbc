import pytest
import torch

from prism_plugin.core import EvenSchedule, QualityRemasking, RandomUnmasking
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

MASK = 31
PROMPT, NEW = 4, 7  # lengths of prompts and of what is generated


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


@pytest.fixture(scope="session")
def model():
    return build_model()


@pytest.fixture(scope="session")
def text_model():
    return build_model(tiny_tokenizer())


@pytest.fixture
def counted(model):
    """The model, and a record of what it was asked: rows of the batch and rows of the LM head, one entry a forward."""
    calls = {"batch": [], "rows": []}
    backbone, decoder = model.plain_backbone.bert, model.get_output_embeddings()
    hooks = [
        backbone.register_forward_hook(lambda module, args, output: calls["batch"].append(output[0].shape[0])),
        decoder.register_forward_hook(lambda module, args, output: calls["rows"].append(output.shape[:-1].numel())),
    ]
    yield model, calls
    for hook in hooks:
        hook.remove()


def prompts(batch, length, seed=0):
    return torch.randint(3, MASK, (batch, length), generator=torch.Generator().manual_seed(seed))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def ragged():
    """Four prompts of different length, one of them empty: as lists, and padded on either side."""
    rows = [row[:length].tolist() for row, length in zip(prompts(4, 7), (7, 3, 0, 5), strict=True)]
    layouts = {}
    for side in ("left", "right"):
        ids, mask = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, 7, dtype=torch.long)
        for number, row in enumerate(rows):
            columns = slice(7 - len(row), 7) if side == "left" else slice(0, len(row))
            ids[number, columns], mask[number, columns] = torch.tensor(row, dtype=torch.long), 1
        layouts[side] = ids, mask
    return rows, layouts


def confident(model, num_steps, num_remask=0, **settings):
    rules = {"remasking": QualityRemasking(), "schedule": EvenSchedule(num_remask)} if num_remask else {}
    return RemaskingSampler(model, num_steps=num_steps, **rules, **settings)


def sampled(model, num_steps, num_remask=2, **settings):
    rules = {"unmasking": RandomUnmasking(), "remasking": QualityRemasking(), "schedule": EvenSchedule(num_remask)}
    return RemaskingSampler(model, num_steps=num_steps, temperature=1.0, **rules, **settings)
