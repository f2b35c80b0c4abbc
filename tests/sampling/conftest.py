import pytest
import torch
from small_samplers import build_model, prompts

from prism_plugin.testing import tiny_tokenizer


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
