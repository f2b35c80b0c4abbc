"""The small tools for tests are real and say what they are."""

import torch

from prism_plugin.testing import tiny_backbone, tiny_tokenizer


def test_tokenizer_writes_and_reads_characters():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == 32
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (0, 1, 31)
    assert tokenizer.decode(tokenizer("hello world.")["input_ids"]) == "hello world."
    assert tokenizer("a[MASK]b?")["input_ids"] == [3, 31, 4, 2]


def test_backbone_is_small_reproducible_and_as_asked():
    torch.manual_seed(0)
    first = tiny_backbone(vocab_size=11, hidden_size=8, num_hidden_layers=3, dropout=0.2)
    torch.manual_seed(0)
    second = tiny_backbone(vocab_size=11, hidden_size=8, num_hidden_layers=3, dropout=0.2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first(input_ids=torch.ones(1, 64, dtype=torch.int64)).logits.shape == (1, 64, 11)
    assert first.num_parameters() < 10_000
    assert first.config.hidden_dropout_prob == 0.2
    assert not first.training
