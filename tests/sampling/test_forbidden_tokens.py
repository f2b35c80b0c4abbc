"""Tokens that may not be drawn, and ends of a text that may not come too early, on a model that wants nothing else."""

import json
from dataclasses import replace

import pytest
import torch
from small_samplers import MASK, build_model, generators, prompts

from prism_plugin.core import EvenSchedule, P2Decider, ThresholdEditing, select_top
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.sampling import SAMPLER_CONFIG_NAME, RemaskingSampler
from prism_plugin.testing import tiny_tokenizer

EOS, WANTED, NEW = 1, 7, 8


@pytest.fixture(scope="module")
def eager():
    """A model that writes EOS wherever it may, and WANTED where it may not."""
    model = build_model(tiny_tokenizer())
    with torch.no_grad():
        model.get_output_embeddings().bias[EOS], model.get_output_embeddings().bias[WANTED] = 80, 40
    return model


class SettledUnmasking:
    """By the divergence from the look before, so that whole distributions are compared."""

    needs = frozenset({"kl"})

    def __call__(self, view, budget):
        return select_top(-view.features["kl"], view.masked, budget)


def samplers(model):
    for name in ("prism", "prism-threshold", "prism-redraft"):
        yield name, RemaskingSampler.from_preset(name, model, num_steps=4)
    yield "blocks", RemaskingSampler.from_preset("confidence", model, num_steps=4, eos_token_id=EOS, block_length=3)
    plain = RemaskingSampler(model, num_steps=4)
    yield "editing", replace(plain, editing=ThresholdEditing(0.5))
    yield "p2", replace(plain, decider=P2Decider(planner="visible_confidence"), schedule=EvenSchedule(2))
    yield "kl", replace(plain, unmasking=SettledUnmasking())


def ragged_prompts():
    ids, mask = prompts(3, 5), torch.ones(3, 5, dtype=torch.long)
    mask[1, 2:] = mask[2, :4] = 0
    return ids, mask


def test_no_end_comes_before_its_time(eager):
    ids, mask = ragged_prompts()
    for name, sampler in samplers(eager):
        ends = sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(1, 2, 3)).sequences[:, 5:] == EOS
        assert ends[:, 0].all(), name
        output = sampler.sample(ids, mask, max_new_tokens=NEW, min_new_tokens=4, generator=generators(1, 2, 3))
        assert (output.sequences[:, 5:9] == WANTED).all(), name
        assert (output.sequences[:, 9] == EOS).all(), name
        never = replace(sampler, eos_token_id=None, suppress_tokens=[EOS])
        output = never.sample(ids, mask, max_new_tokens=NEW, generator=generators(1, 2, 3))
        assert (output.sequences[:, 5:] == WANTED).all(), name


def test_an_infill_counts_the_masks_of_each_row(eager):
    request = torch.tensor([[MASK, 5, MASK, 6, MASK, MASK], [9, MASK, 9, 9, 9, 9]])
    filled = RemaskingSampler(eager, num_steps=3).infill(request, min_new_tokens=2).sequences
    assert filled.tolist() == [[WANTED, 5, WANTED, 6, EOS, EOS], [9, WANTED, 9, 9, 9, 9]]


def test_texts_too(eager):
    sampler = RemaskingSampler(eager, num_steps=3)
    assert sampler.generate(["ab", "c"], max_new_tokens=4) == ["", ""]
    assert sampler.generate(["ab", "c"], max_new_tokens=4, min_new_tokens=3) == [eager.tokenizer.decode([WANTED] * 3)] * 2


def test_it_costs_no_rows(eager):
    rows = []
    handle = eager.get_output_embeddings().register_forward_hook(lambda *call: rows.append(call[-1].shape[:-1].numel()))
    sampler = RemaskingSampler.from_preset("prism", eager, num_steps=4)
    counts = []
    for options in ({}, {"min_new_tokens": 3}):
        sampler.sample(prompts(2, 3), max_new_tokens=NEW, generator=generators(1, 2), **options)
        counts.append(list(rows))
        rows.clear()
    handle.remove()
    assert counts[0] == counts[1]


def test_the_setting_is_saved_and_the_request_is_not(eager, tmp_path):
    sampler = RemaskingSampler.from_preset("confidence", eager, num_steps=4, suppress_tokens=[EOS, 9])
    sampler.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / SAMPLER_CONFIG_NAME).read_text())
    assert stored["suppress_tokens"] == [EOS, 9]
    assert RemaskingSampler.from_pretrained(tmp_path, eager).suppress_tokens == (EOS, 9)
    assert "suppress_tokens" not in RemaskingSampler(eager, num_steps=4).to_dict()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"suppress_tokens": 5}, "`suppress_tokens` of RemaskingSampler must list integers of at least 0, found 5"),
        ({"suppress_tokens": []}, "`suppress_tokens` of RemaskingSampler must list integers"),
        ({"suppress_tokens": ["x"]}, "`suppress_tokens` of RemaskingSampler must list integers"),
        ({"suppress_tokens": [32]}, "`suppress_tokens` must be in the model's vocabulary of 32 tokens, got 32"),
        ({"suppress_tokens": range(31)}, "must list integers"),
        ({"suppress_tokens": [*range(31)]}, "`suppress_tokens` must leave a token to draw, but holds all of them"),
        ({"suppress_tokens": [1], "eos_token_id": 1}, "`eos_token_id` 1 would be ignored, since `suppress_tokens` holds it"),
    ],
)
def test_settings_that_cannot_be(model, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        RemaskingSampler(model, num_steps=4, **settings)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda s: s.sample(prompts(1, 3), max_new_tokens=4, min_new_tokens=5), "`min_new_tokens` must be at most `max_new"),
        (lambda s: s.generate(["a"], max_new_tokens=4, min_new_tokens=5), "at most `max_new_tokens`, 4 here, got 5; lower it"),
        (lambda s: s.sample(prompts(1, 3), max_new_tokens=4, min_new_tokens=0), "`min_new_tokens` must be an integer of at"),
        (lambda s: s.infill(torch.tensor([[MASK]]), min_new_tokens=1.5), "`min_new_tokens` must be an integer of at least 1"),
    ],
)
def test_requests_that_cannot_be(eager, ask, words):
    with pytest.raises(SamplingError, match=words):
        ask(RemaskingSampler(eager, num_steps=4))


def test_there_must_be_an_end_to_hold_back(model):
    with pytest.raises(SamplingError, match="neither the sampler nor a tokenizer says which that is; set `eos_token_id`"):
        RemaskingSampler(model, num_steps=4).sample(prompts(1, 3), max_new_tokens=4, min_new_tokens=2)
