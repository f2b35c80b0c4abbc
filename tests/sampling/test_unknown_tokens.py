"""Tokens that the tokenizer does not have, which a matrix longer than it has rows for, are never drawn: by whoever draws."""

import json
from dataclasses import replace

import pytest
import torch
from small_samplers import MASK, build_model
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, GenerationMixin, PreTrainedTokenizerFast

import prism_plugin as prism
from prism_plugin.data import prepare_rows
from prism_plugin.evaluation.quality import judge_drafts
from prism_plugin.sampling import RemaskingSampler, export_sampler
from prism_plugin.testing import tiny_tokenizer

PADDED = 40  # rows of the matrix; the tokenizer has 32 tokens
PRESETS = {"prism": {"num_remask": 2}, "confidence": {}, "random": {}}
RULES = {"argmax": {"tokens": "argmax"}, "sampled": {}, "two looks": {"num_looks": 2, "positions": "confidence"}}


def tokenizer_with_a_hole():
    """The tiny one, with one token more that has the matrix's last id."""
    content = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    content["model"]["vocab"]["<last>"] = PADDED - 1
    special = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **special)


@pytest.fixture(scope="module")
def padded():
    """A model that would rather write what the tokenizer does not have."""
    model = build_model(tiny_tokenizer(), vocab_size=PADDED)
    with torch.no_grad():
        model.get_output_embeddings().bias[32:] += 30
    return model


def sampler_of(model, preset="prism", **settings):
    return RemaskingSampler.from_preset(preset, model, num_steps=4, **settings)


def test_what_a_tokenizer_does_not_have(padded):
    assert padded.unknown_ids == tuple(range(32, PADDED))
    assert build_model(tiny_tokenizer()).unknown_ids == ()
    assert build_model(vocab_size=PADDED).unknown_ids == (), "without a tokenizer nothing is known"
    assert build_model(tokenizer_with_a_hole(), vocab_size=PADDED).unknown_ids == tuple(range(32, PADDED - 1))


def test_a_mask_token_that_the_tokenizer_does_not_have_is_still_the_mask():
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    model = build_model(tokenizer, vocab_size=PADDED)
    model.prism_config = prism.PrismConfig.from_dict(model.prism_config.to_dict() | {"mask_token_id": PADDED - 1})
    assert model.unknown_ids == tuple(range(32, PADDED - 1))
    tokens = sampler_of(model).sample(torch.full((2, 3), 5), max_new_tokens=6).sequences
    assert tokens.max() < 32


def test_the_tokenizers_new_tokens_are_drawn(padded):
    tokenizer = tiny_tokenizer()
    model = build_model(tokenizer, vocab_size=PADDED)
    assert model.unknown_ids[0] == 32
    tokenizer.add_tokens(["<new>"])
    assert model.unknown_ids[0] == 33


@pytest.mark.parametrize("preset", PRESETS)
def test_samplers_write_what_the_tokenizer_has(padded, preset):
    settings = PRESETS[preset]
    sampler = sampler_of(padded, preset, **settings)
    output = sampler.sample(torch.full((3, 3), 5), max_new_tokens=8, generator=torch.Generator().manual_seed(0))
    assert output.sequences.max() < MASK


def test_an_end_that_was_asked_for_is_drawn(padded):
    output = sampler_of(padded, "confidence", eos_token_id=PADDED - 1).sample(torch.full((1, 3), 5), max_new_tokens=8)
    assert PADDED - 1 in output.sequences
    assert not set(range(32, PADDED - 1)) & set(output.sequences.flatten().tolist())


@pytest.mark.parametrize("hole", [False, True], ids=["at the end", "in the middle"])
@pytest.mark.parametrize("rule", RULES)
def test_drafts_hold_what_the_tokenizer_has(rule, hole):
    model = build_model(tokenizer_with_a_hole() if hole else tiny_tokenizer(), vocab_size=PADDED)
    with torch.no_grad():
        model.get_output_embeddings().bias[list(model.unknown_ids)] += 30
    objective = prism.get_objective("prism", drafts=[{"num_drafted": 4, **RULES[rule]}], diffusion_weight=0.0, t_min=0.5)
    rows = prepare_rows([{"text": "the cat sat on"}] * 6, model.tokenizer, mask_token_id=MASK)
    batch = prism.PrismCollator(pad_token_id=0)([rows[index] for index in range(6)])
    draft = objective.step(model, batch, epoch=0, seed=0, unwrapped=model).draft
    assert draft.drafted.any()
    assert not set(model.unknown_ids) & set(draft.ids.flatten().tolist())
    assert (draft.history.commit_confidence[draft.drafted] > 1e-8).all(), "of what may be drawn"


def test_the_confidence_of_drafts_is_among_what_may_be_drawn(padded):
    objective = prism.get_objective("prism", drafts=[{"num_drafted": 2, "tokens": "argmax"}], diffusion_weight=0.0)
    rows = prepare_rows([{"text": "the cat sat on"}] * 4, padded.tokenizer, mask_token_id=MASK)
    assert judge_drafts(padded, objective, rows).scores["visible_confidence"].max() > 1e-3


def test_an_export_writes_the_same(padded, tmp_path):
    sampler, ids = sampler_of(padded, num_remask=2), torch.full((2, 3), 5)
    export_sampler(sampler, tmp_path / "out")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    generate = GenerationMixin.load_custom_generate(model, tmp_path / "out", trust_remote_code=True)
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    theirs = generate(model, input_ids=ids, sampler_path=tmp_path / "out", max_new_tokens=6, generator=seeded[0])
    assert theirs.max() < MASK
    assert torch.equal(theirs, sampler.sample(ids, max_new_tokens=6, generator=seeded[1]).sequences)


@pytest.mark.parametrize("where", ["config", "tokenizer", "vocabulary", "nowhere"])
def test_tokens_that_edit_a_text_of_changing_length_are_never_drawn(where):
    tokenizer, names = tiny_tokenizer(), ("delete_token_id", "a")
    model = build_model(tokenizer if where != "config" else None)
    model.spec = replace(model.spec, edit_tokens=() if where == "nowhere" else names[: 1 + (where == "vocabulary")])
    if where in ("config", "tokenizer"):
        (model.config if where == "config" else tokenizer).delete_token_id = 7
    expected = {"config": (7,), "tokenizer": (7,), "vocabulary": (tokenizer.get_vocab()["a"],), "nowhere": ()}[where]
    assert model.unknown_ids == expected
    with torch.no_grad():
        model.get_output_embeddings().bias[list(expected)] += 30
    output = RemaskingSampler(model, num_steps=4).sample(torch.tensor([[5, 6]]), max_new_tokens=6)
    assert not set(output.sequences[0, 2:].tolist()) & set(expected)
