import pytest
import torch
from tokenizers.processors import TemplateProcessing

from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.prompts import lay_prompts
from prism_plugin.testing import tiny_tokenizer


@pytest.fixture
def chat_model(monkeypatch, text_model):
    """The model, with a tokenizer that has a chat template and puts special tokens around a text, as BERT's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.content }}.{% endfor %}{% if add_generation_prompt %} x{% endif %}"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[UNK] $A [EOS]", special_tokens=[("[UNK]", 2), ("[EOS]", 1)]
    )
    monkeypatch.setattr(text_model, "tokenizer", tokenizer)
    return text_model


def test_texts_are_continued_alone_or_together(text_model):
    sampler = RemaskingSampler(text_model, num_steps=4)
    texts = ["hello world", "ab", "the quick fox"]
    together = sampler.generate(texts, max_new_tokens=6)
    assert together == [sampler.generate([text], max_new_tokens=6)[0] for text in texts]
    ids = torch.tensor([text_model.tokenizer("ab")["input_ids"]])
    new = sampler.sample(ids, max_new_tokens=6).sequences[0, 2:]
    assert together[1] == text_model.tokenizer.decode(new, skip_special_tokens=True)


def test_special_tokens_stand_around_the_text_and_what_is_generated(chat_model):
    canvases = []
    hook = chat_model.plain_backbone.bert.register_forward_pre_hook(lambda module, args: canvases.append(args[0].tolist()))
    RemaskingSampler(chat_model, num_steps=1).generate(["ab", "abc"], max_new_tokens=2)
    hook.remove()
    assert canvases == [[[2, 3, 4, 31, 31, 1, 0], [2, 3, 4, 5, 31, 31, 1]]]


@pytest.mark.parametrize("prompt", ["[UNK]", "[EOS]", "[UNK][EOS]"])
def test_a_prompt_of_special_tokens_alone_stands_before_what_is_generated(chat_model, prompt):
    """The tokenizer adds the same tokens, [UNK] before and [EOS] after, so they cannot be told by what they are."""
    laid = lay_prompts(chat_model.tokenizer, [prompt], max_new_tokens=2, mask_token_id=31, pad_token_id=0)
    own = chat_model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert laid.input_ids.tolist() == [[2, *own, 31, 31, 1]]
    assert laid.starts == [1 + len(own)]


def test_what_a_tokenizer_gives_is_taken_with_its_mask(text_model):
    sampler, tokenizer = RemaskingSampler(text_model, num_steps=2), text_model.tokenizer
    encoded = tokenizer(["hello world", "ab"], padding=True, return_tensors="pt")
    expected = sampler.sample(encoded["input_ids"], encoded["attention_mask"], max_new_tokens=3)
    assert torch.equal(sampler.sample(encoded, max_new_tokens=3).sequences, expected.sequences)
    masked = tokenizer(["a[MASK]b", "[MASK]"], padding=True, return_tensors="pt")
    expected = sampler.infill(masked["input_ids"], masked["attention_mask"])
    assert torch.equal(sampler.infill(masked).sequences, expected.sequences)


def test_chats_go_through_the_template(chat_model):
    sampler = RemaskingSampler(chat_model, num_steps=3)
    chat = [{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}]
    ids = torch.tensor([chat_model.tokenizer("ab.c. x", add_special_tokens=False)["input_ids"]])
    new = sampler.sample(ids, max_new_tokens=5).sequences[0, -5:]
    assert sampler.generate([chat], max_new_tokens=5) == [chat_model.tokenizer.decode(new, skip_special_tokens=True)]


def test_one_generator_per_prompt(text_model):
    sampler = RemaskingSampler(text_model, num_steps=3, temperature=1.0)
    together = sampler.generate(["ab", "hello"], max_new_tokens=8, generator=[torch.Generator().manual_seed(s) for s in (1, 2)])
    alone = sampler.generate(["hello"], max_new_tokens=8, generator=[torch.Generator().manual_seed(2)])
    assert together[1:] == alone
