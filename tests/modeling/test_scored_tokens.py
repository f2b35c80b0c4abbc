"""`score(..., return_tokens=True)`: every token with its quality, its name, and its place in the text."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import prism_plugin as prism
from prism_plugin.testing import tiny_backbone, tiny_tokenizer


@pytest.fixture
def model():
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[UNK] $A [EOS]", special_tokens=[("[UNK]", 2), ("[EOS]", 1)]
    )
    return prism.attach_quality_head(tiny_backbone(), tokenizer=tokenizer, probe=False)


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_token_has_its_name_and_its_place(model, side):
    model.tokenizer.padding_side = side
    texts = ["a[EOS]c", "b"]
    scored = model.score(texts, return_tokens=True)
    assert torch.equal(scored.quality, model.score(texts))
    assert scored.input_ids.shape == scored.attention_mask.shape == scored.quality.shape == (2, 5)
    own = [
        [one for one, is_token in zip(row, mask, strict=True) if is_token]
        for row, mask in zip(scored.tokens, scored.attention_mask, strict=True)
    ]
    assert own == [["[UNK]", "a", "[EOS]", "c", "[EOS]"], ["[UNK]", "b", "[EOS]"]]
    assert scored.offsets[0] == [None, (0, 1), (1, 6), (6, 7), None]
    assert scored.offsets[1] == ([None, (0, 1), None, None, None] if side == "right" else [None, None, None, (0, 1), None])
    assert scored.attention_mask.sum(-1).tolist() == [5, 3]
    assert (scored.quality > 0).equal(scored.attention_mask)


def test_ids_have_names_and_no_places(model):
    scored = model.score(torch.tensor([[3, 4]]), return_tokens=True)
    assert (scored.tokens, scored.offsets) == ([["a", "b"]], None)
    assert scored.attention_mask.all()


def test_without_a_tokenizer_there_are_no_names(model):
    model.tokenizer = None
    scored = model.score(torch.tensor([[3, 4]]), torch.tensor([[1, 0]]), return_tokens=True)
    assert scored.tokens is scored.offsets is None
    assert scored.attention_mask.tolist() == [[True, False]]


def test_a_tokenizer_that_does_not_tell_gives_no_places(model, monkeypatch):
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)  # as one that is written in Python
    scored = model.score(["ab"], return_tokens=True)
    assert (scored.tokens, scored.offsets) == ([["[UNK]", "a", "b", "[EOS]"]], None)
