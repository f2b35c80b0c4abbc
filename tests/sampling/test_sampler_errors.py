"""Everything that a caller can get wrong: one sentence, and before any forward where it can be known."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_samplers import MASK, generators, prompts

from prism_plugin.core import CapsSchedule, EvenSchedule, NeverRemasking, QualityRemasking, RedraftSchedule, RedraftUnmasking
from prism_plugin.core.view import Budget
from prism_plugin.errors import ConfigurationError, MissingQualityError, NonFiniteError, SamplingError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone

GOOD = {"num_steps": 4}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_steps": 0}, "`num_steps` must be an integer of at least 1, got 0"),
        ({"num_steps": 2.0}, "`num_steps` must be an integer of at least 1, got 2.0"),
        ({"num_steps": None}, "`num_steps` must be an integer of at least 1, got None"),
        ({"block_length": 0}, "`block_length` must be an integer of at least 1 or None, got 0"),
        ({"max_remasks_per_position": 0}, "`max_remasks_per_position` must be an integer of at least 1"),
        ({"eos_token_id": -1}, "`eos_token_id` must be an integer of at least 0"),
        ({"eos_token_id": 32}, "in the model's vocabulary of 32 tokens, got 32"),
        ({"eos_token_id": MASK}, "must not be the mask token, got 31"),
        ({"temperature": -0.5}, "`temperature` of RemaskingSampler must be a finite number of at least 0.*found -0.5"),
        ({"temperature": float("nan")}, "`temperature` of RemaskingSampler must be a finite number.*found nan"),
        ({"temperature": float("inf")}, "`temperature` of RemaskingSampler must be a finite number.*found inf"),
        ({"temperature": "1e-1"}, "`temperature` of RemaskingSampler must be a finite number.*found '1e-1'"),
        ({"temperature": None}, "`temperature` of RemaskingSampler must be a finite number.*found None"),
        ({"top_p": 0.0, "temperature": 1.0}, r"`top_p` of RemaskingSampler must be a number in \(0, 1\].*found 0.0"),
        ({"top_p": 1.5, "temperature": 1.0}, r"`top_p` of RemaskingSampler must be a number in \(0, 1\].*found 1.5"),
        ({"top_p": "0.9", "temperature": 1.0}, r"`top_p` of RemaskingSampler must be a number in \(0, 1\].*found '0.9'"),
        ({"top_p": 0.9}, "`top_p` 0.9 would be ignored at temperature 0"),
        ({"remasking": QualityRemasking()}, "the schedule grants no remasks"),
        ({"schedule": EvenSchedule(2)}, "grants 2 remasks a step, but `remasking` is NeverRemasking"),
        ({"max_remasks_per_position": 1}, "would be ignored with NeverRemasking"),
        ({"schedule": CapsSchedule((3, 1))}, "the schedule grants 3 remasks a step, but `remasking` is NeverRemasking"),
        (
            {"schedule": RedraftSchedule()},
            "RedraftSchedule is for drafts that are taken back, but `remasking` is NeverRemasking",
        ),
        ({"unmasking": RedraftUnmasking(0.9)}, "RedraftUnmasking is for drafts that are taken back"),
        ({"unmasking": "confidence"}, "`unmasking` must be a rule to call.*got 'confidence'"),
        ({"remasking": NeverRemasking}, "`remasking` must be a rule to call.*make an instance"),
    ],
)
def test_settings_out_of_range_or_against_each_other(model, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        RemaskingSampler(model, **GOOD | settings)


def test_the_model_must_carry_a_quality_head():
    with pytest.raises(ConfigurationError, match="must be a PrismModel, got BertForMaskedLM; wrap it with"):
        RemaskingSampler(tiny_backbone(), **GOOD)
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=MASK))
    model.quality_head = None
    RemaskingSampler(model, **GOOD)
    with pytest.raises(MissingQualityError, match="QualityRemasking needs the quality head, but the model has none"):
        RemaskingSampler(model, **GOOD, remasking=QualityRemasking(), schedule=EvenSchedule(1))


def with_mask_in_padding():
    return torch.tensor([[MASK, 3, MASK]]), torch.tensor([[0, 1, 1]])


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda s: s.sample(prompts(2, 3), max_new_tokens=0), "`max_new_tokens` must be an integer of at least 1, got 0"),
        (lambda s: s.sample(prompts(2, 3), max_new_tokens=True), "`max_new_tokens` must be an integer of at least 1"),
        (lambda s: s.sample(torch.tensor([[3, MASK]]), max_new_tokens=2), "prompt must not contain the mask token.*`infill`"),
        (lambda s: s.sample(prompts(2, 3) + 20, max_new_tokens=2), "in the model's vocabulary, 0 to 31"),
        (
            lambda s: s.sample(prompts(2, 3), torch.ones(2, 4), max_new_tokens=2),
            "must be a tensor with the shape of `input_ids`",
        ),
        (lambda s: s.sample(prompts(2, 3), max_new_tokens=2, generator=generators(1)), "one generator per row, 2 here, got 1"),
        (lambda s: s.sample(prompts(2, 3), max_new_tokens=2, generator=generators(1) * 2), "found the same one twice"),
        (lambda s: s.sample(prompts(2, 3), max_new_tokens=2, generator=7), "must be a torch.Generator, a list.*got 7"),
        (lambda s: s.sample(prompts(2, 3), max_new_tokens=9), "at least the number of blocks, 5 of `block_length` 2.*got 4"),
        (lambda s: s.infill(prompts(2, 3)), "must hold the mask token.*none in any row.*`sample`"),
        (lambda s: s.infill(*with_mask_in_padding()), "found the mask token in padding"),
        (lambda s: s.infill(torch.full((1, 9), MASK)), "at least the number of blocks, 5"),
        (lambda s: s.infill(torch.tensor([[MASK, 40]])), "in the model's vocabulary"),
    ],
)
def test_requests_are_refused_before_any_forward(counted, ask, words):
    model, calls = counted
    with pytest.raises(SamplingError, match=words):
        ask(RemaskingSampler(model, num_steps=4, block_length=2))
    assert not calls["batch"]


def test_padding_needs_a_backbone_that_takes_a_mask(monkeypatch, model):
    monkeypatch.setattr(model, "spec", replace(model.spec, attention_mask="none"))
    sampler = RemaskingSampler(model, num_steps=2)
    assert not (sampler.sample(prompts(2, 3), max_new_tokens=2).sequences == MASK).any()
    with pytest.raises(SamplingError, match="bert takes no attention mask, so the rows of a batch must be equally long"):
        sampler.sample(prompts(2, 3), torch.tensor([[1, 1, 1], [0, 1, 1]]), max_new_tokens=2)


def everything(view, budget):
    return torch.ones_like(view.masked)


def too_many(view, budget):
    return view.revealed


def nothing(view, budget):
    return torch.zeros_like(view.masked)


def stops_short(step, num_steps, total, revealed):
    return Budget(remask=torch.zeros_like(step), target=((step + 1) * total // num_steps).minimum(total - 1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unmasking": everything}, "may choose only among `view.masked`, but everything chose other positions"),
        ({"remasking": everything, "schedule": EvenSchedule(9)}, "only among `view.revealed`, but everything chose"),
        ({"remasking": too_many, "schedule": EvenSchedule(1)}, "must stay within its budget, but too_many took back more"),
        ({"unmasking": lambda view, budget: None}, r"return a bool mask of shape \[2, 6\], but <lambda> returned NoneType"),
        ({"unmasking": lambda view, budget: view.confidence}, r"returned torch.float32 of shape \[2, 6\]"),
        ({"unmasking": lambda view, budget: view.masked[:1]}, r"returned torch.bool of shape \[1, 6\]"),
        ({"unmasking": nothing}, r"mask tokens are left after the last step, 3 in `input_ids\[0\]`.*or nothing does not"),
        ({"schedule": stops_short}, r"mask tokens are left after the last step, 1 in `input_ids\[0\]`.*stops_short or"),
    ],
)
def test_rules_that_break_their_contract_are_named(model, settings, words):
    sampler = RemaskingSampler(model, num_steps=3, **settings)
    with pytest.raises(SamplingError, match=words):
        sampler.sample(prompts(2, 3), max_new_tokens=3)


def test_a_fault_stops_the_batch_at_once(counted):
    model, calls = counted
    sampler = RemaskingSampler(model, num_steps=6, remasking=too_many, schedule=EvenSchedule(1))
    with pytest.raises(SamplingError, match="too_many took back more"):
        sampler.sample(prompts(2, 3), max_new_tokens=6)
    assert calls["batch"] == [2] * 3  # one position is revealed after the first look, two after the second


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(model, temperature, value):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_output_embeddings().bias[5] = value
    sampler = RemaskingSampler(model, num_steps=6, temperature=temperature)
    with pytest.raises(SamplingError, match="logits must be numbers, but NaN or infinity came at a masked position"):
        sampler.sample(prompts(2, 3), max_new_tokens=6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_quality_that_is_no_number_is_refused(model, temperature):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.quality_head.layers[0].weight[3] = float("nan")
    sampler = RemaskingSampler(
        model, num_steps=6, temperature=temperature, remasking=QualityRemasking(), schedule=EvenSchedule(1)
    )
    with pytest.raises(SamplingError, match="quality of a token must be a number, but the quality head gave NaN"):
        sampler.sample(prompts(2, 3), max_new_tokens=6)
    with pytest.raises(NonFiniteError, match="The quality of a token must be a number, but the model gave NaN"):
        model.score(prompts(2, 3))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda s: s.generate("one text", max_new_tokens=2), "must be a list with at least one text or chat, got 'one text'"),
        (lambda s: s.generate([], max_new_tokens=2), "must be a list with at least one text or chat"),
        (lambda s: s.generate([""], max_new_tokens=2), "a text must give at least one token"),
        (lambda s: s.generate(s.model.tokenizer(["ab"]), max_new_tokens=2), "at least one text or chat, got BatchEncoding"),
        (lambda s: s.generate({"prompts": ["ab"]}, max_new_tokens=2), "at least one text or chat, got dict"),
        (lambda s: s.generate(prompts(1, 3), max_new_tokens=2), "at least one text or chat, got Tensor"),
        (lambda s: s.generate(["ab", None], max_new_tokens=2), r"`prompts\[1\]` must be a text, or a chat, .* got NoneType"),
        (lambda s: s.generate([b"ab"], max_new_tokens=2), r"`prompts\[0\]` must be a text, or a chat, .* got bytes"),
        (
            lambda s: s.generate([{"role": "user", "content": "a"}], max_new_tokens=2),
            r"`prompts\[0\]` must be a text, or a chat, which is a list of messages, got dict",
        ),
        (
            lambda s: s.generate([[3, 4]], max_new_tokens=2),
            r"`prompts\[0\]` must list messages with role and content, found",
        ),
        (
            lambda s: s.generate([[{"role": "user", "content": None}]], max_new_tokens=2),
            r"`content` of `prompts\[0\]\[0\]` must be text, found NoneType",
        ),
        (lambda s: s.generate(["ab"], max_new_tokens=0), "`max_new_tokens` must be an integer of at least 1"),
        (lambda s: s.generate(["a[MASK]"], max_new_tokens=2), "must not contain the mask token, found it in `prompts`"),
        (
            lambda s: s.generate([[{"role": "user", "content": "a"}]], max_new_tokens=2),
            "needs a tokenizer with a chat template",
        ),
    ],
)
def test_generate_refuses(text_model, ask, words):
    with pytest.raises(SamplingError, match=words):
        ask(RemaskingSampler(text_model, num_steps=2))


def test_generate_needs_a_tokenizer(model):
    with pytest.raises(SamplingError, match="needs a tokenizer, but the model has none"):
        RemaskingSampler(model, num_steps=2).generate(["ab"], max_new_tokens=2)


def test_a_sampler_cannot_be_changed(model):
    sampler = RemaskingSampler(model, num_steps=2)
    with pytest.raises(AttributeError):
        sampler.num_steps = 3
    assert SimpleNamespace(**vars(replace(sampler, num_steps=3))).num_steps == 3


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "esm", "llama"])
def test_a_row_fits_a_table_of_positions_exactly_or_is_refused_before_any_forward(family):
    backbone = tiny_backbone(family, max_position_embeddings=8)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=MASK))
    sampler = RemaskingSampler(model, num_steps=1)
    limit = {"bert": 9, "distilbert": 9, "roberta": 8}.get(family)  # the tiny models have a row more, for RoBERTa's padding
    assert sampler.sample(prompts(1, 3), max_new_tokens=(limit or 20) - 3).sequences.shape == (1, limit or 20)
    if limit is not None:
        with pytest.raises(SamplingError, match=f"at most {limit} tokens, as many as {family} has .* found {limit + 1}"):
            sampler.sample(prompts(1, 3), max_new_tokens=limit - 2)
