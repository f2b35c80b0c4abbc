"""Exports that cannot be, and calls that an exported sampler refuses: one sentence each, nothing half-written."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from small_samplers import MASK, build_model, generators, prompts
from transformers import BertForMaskedLM, GenerationMixin, LlamaForCausalLM

from prism_plugin.core import REMASKING, EvenSchedule, QualityRemasking, select_top
from prism_plugin.core.joint import DECIDERS, P2Decider
from prism_plugin.errors import (
    BackboneError,
    ConfigurationError,
    SamplingError,
    SavingError,
    StoredStateError,
    UnknownNameError,
)
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.modeling.heads import HEADS
from prism_plugin.modeling.lm_head import has_row_gathering
from prism_plugin.sampling import RemaskingSampler, export_sampler
from prism_plugin.sampling import export as export_module
from prism_plugin.sampling.exported import generate
from prism_plugin.testing import tiny_backbone, tiny_tokenizer


@pytest.fixture(scope="module")
def sampler():
    return RemaskingSampler.from_preset("prism", build_model(tiny_tokenizer()), num_steps=5)


@pytest.fixture(scope="module")
def folder(sampler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "shared"
    export_sampler(sampler, folder)
    return folder


@pytest.fixture
def loaded(folder):
    return BertForMaskedLM.from_pretrained(folder).eval()


@dataclass(frozen=True)
class Foreign:
    """A rule with a name, in a module that the receiver does not have."""

    def __call__(self, view, budget):
        return select_top(view.noise, view.revealed, budget)


class ForeignDecider(P2Decider):
    """A decider of such a module."""


def test_a_rule_without_a_name_is_refused(sampler, tmp_path):
    lambdas = replace(sampler, remasking=lambda view, budget: view.revealed & False)
    with pytest.raises(UnknownNameError, match=r"Only a registered remasking rule can be saved, found function; register"):
        export_sampler(lambdas, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_rule_of_another_module_is_refused(sampler, tmp_path, monkeypatch):
    monkeypatch.setitem(vars(REMASKING)["_by_name"], "foreign", Foreign)
    with pytest.raises(
        ConfigurationError, match=r"holds the rules of prism_plugin only, .* but Foreign is of test_export_requests"
    ):
        export_sampler(replace(sampler, remasking=Foreign()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_rule_is_asked_where_it_is_from(sampler, tmp_path, monkeypatch):
    monkeypatch.setitem(vars(DECIDERS)["_by_name"], "foreign", ForeignDecider)
    by_itself = RemaskingSampler(sampler.model, num_steps=5, decider=ForeignDecider(), schedule=EvenSchedule(1))
    with pytest.raises(ConfigurationError, match=r"holds the rules of prism_plugin only, .* but ForeignDecider is of test_"):
        export_sampler(by_itself, tmp_path / "out")


def test_a_head_of_another_module_is_refused(sampler, tmp_path, monkeypatch):
    monkeypatch.setitem(HEADS, "foreign", lambda hidden_size: torch.nn.Linear(hidden_size, 1))
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=MASK, head="foreign"))
    with pytest.raises(
        ConfigurationError, match=r"holds the kinds of heads of prism_plugin only, .* is of test_export_requests"
    ):
        export_sampler(replace(sampler, model=model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(sampler, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(SavingError, match=r"needs a folder that is empty or not there, but '.*' is not; choose another"):
            export_sampler(sampler, target)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken(sampler, tmp_path):
    export_sampler(sampler, tmp_path)
    assert {"config.json", "model.safetensors", "prism_config.json", "custom_generate"} < {
        one.name for one in tmp_path.iterdir()
    }


def test_a_folder_without_rights_is_refused_before_any_work(sampler, tmp_path, monkeypatch):
    made = Path.mkdir

    def denied(self, *args, **options):
        if self.name.startswith(".out"):
            raise PermissionError(13, "Permission denied", str(self))
        made(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", denied)
    monkeypatch.setattr(export_module, "write_files", lambda *args, **options: pytest.fail("worked for nothing"))
    with pytest.raises(
        SavingError, match=r"Nothing could be saved in '.*out' \(\[Errno 13\] Permission denied: .*choose a folder"
    ):
        export_sampler(sampler, tmp_path / "out")


def test_a_full_disk_leaves_nothing(sampler, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "write_settings", full)
    with pytest.raises(SavingError, match="No space left on device"):
        export_sampler(sampler, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_merging_the_backbone_must_be_known_by_an_id(sampler, tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"`merge=False` leaves the backbone to be loaded by its id, but this one has none"
    ):
        export_sampler(sampler, tmp_path / "out", merge=False)
    tiny_backbone().save_pretrained(tmp_path / "base")
    local = attach_quality_head(BertForMaskedLM.from_pretrained(tmp_path / "base"), PrismConfig(mask_token_id=MASK))
    with pytest.raises(ConfigurationError, match="this one is the local folder"):
        export_sampler(replace(sampler, model=local), tmp_path / "out", merge=False)
    assert [one.name for one in tmp_path.iterdir()] == ["base"]


class OwnBert(BertForMaskedLM):
    """A class that only this process knows."""


def test_a_class_that_transformers_does_not_know_is_refused(sampler, tmp_path):
    model = attach_quality_head(OwnBert(tiny_backbone().config), PrismConfig(mask_token_id=MASK))
    with pytest.raises(ConfigurationError, match=r"transformers alone, which does not know OwnBert of test_export_requests"):
        export_sampler(replace(sampler, model=model), tmp_path / "out")


def test_the_users_model_stays_as_it_is(tmp_path):
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=MASK), lora=LoraConfig(r=2))
    torch.nn.init.normal_(next(parameter for name, parameter in model.named_parameters() if "lora_B" in name))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_sampler(RemaskingSampler.from_preset("prism", model, num_steps=5), tmp_path / "out")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any("lora" in name for name in after)


def test_calling_leaves_no_trace_on_the_model(tmp_path):
    backbone = tiny_backbone("llama")
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=MASK))
    export_sampler(RemaskingSampler.from_preset("prism", model, num_steps=5), tmp_path / "out")
    plain = model.detach()
    plain.config.use_cache = True
    plain.train()
    generate(plain, prompts(1, 3), max_new_tokens=4, sampler_path=tmp_path / "out")
    assert plain.training
    assert plain.config.use_cache is True
    assert not has_row_gathering(plain.lm_head)
    with pytest.raises(SamplingError, match="must be an integer of at least 1"):
        generate(plain, prompts(1, 3), max_new_tokens=0, sampler_path=tmp_path / "out")
    assert not has_row_gathering(plain.lm_head)


def test_calling_gives_every_module_its_own_mode_back(folder, loaded):
    loaded.train()
    loaded.bert.encoder.layer[0].eval()  # a layer that its user keeps still
    modes = [module.training for module in loaded.modules()]
    generate(loaded, prompts(1, 3), max_new_tokens=4, sampler_path=folder)
    assert len(set(modes)) == 2
    assert [module.training for module in loaded.modules()] == modes


def test_half_precision_stays_what_it_is(tmp_path):
    model = attach_quality_head(tiny_backbone().to(torch.bfloat16), PrismConfig(mask_token_id=MASK))
    torch.nn.init.normal_(next(model.quality_head.parameters()))
    sampler = RemaskingSampler.from_preset("prism", model, num_steps=5)
    export_sampler(sampler, tmp_path / "out")
    loaded = BertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.dtype == torch.bfloat16
    tokens = generate(loaded, prompts(2, 3), max_new_tokens=6, generator=generators(1, 2))
    assert torch.equal(tokens, sampler.sample(prompts(2, 3), max_new_tokens=6, generator=generators(1, 2)).sequences)


def test_a_model_that_is_loaded_with_its_code_generates_by_itself(tmp_path):
    model = attach_quality_head(tiny_backbone("llama"), PrismConfig(mask_token_id=MASK))
    sampler = RemaskingSampler.from_preset("prism", model, num_steps=5)
    export_sampler(sampler, tmp_path / "out")
    expected = sampler.sample(prompts(1, 3), max_new_tokens=4, generator=generators(1)).sequences
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    alone = loaded.generate(input_ids=prompts(1, 3), max_new_tokens=4, generator=generators(1))
    named = {"custom_generate": tmp_path / "out", "trust_remote_code": True, "sampler_path": tmp_path / "out"}
    asked = loaded.generate(input_ids=prompts(1, 3), max_new_tokens=4, generator=generators(1), **named)
    assert torch.equal(alone, expected)
    assert torch.equal(asked, expected)


def test_the_folder_is_found_where_the_model_came_from(sampler, folder, loaded):
    tokens = generate(loaded, prompts(2, 3), max_new_tokens=4, generator=generators(1, 2))
    assert torch.equal(tokens, sampler.sample(prompts(2, 3), max_new_tokens=4, generator=generators(1, 2)).sequences)


def test_the_code_comes_from_the_hub_module_by_module(sampler, folder, loaded, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "models--me--sampler"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    from_hub = GenerationMixin.load_custom_generate(loaded, "me/sampler", trust_remote_code=True, cache_dir=tmp_path)
    request = {"max_new_tokens": 4, "generator": generators(1, 2)}
    tokens = from_hub(loaded, prompts(2, 3), sampler_path=repository / "snapshots" / commit, **request)
    request["generator"] = generators(1, 2)
    assert torch.equal(tokens, sampler.sample(prompts(2, 3), **request).sequences)


def test_everything_is_returned_on_request(sampler, folder, loaded):
    class Drafts:
        def __init__(self):
            self.drafts, self.ended = [], 0

        def put(self, value): ...

        def put_draft(self, value):
            self.drafts.append(value)

        def end(self):
            self.ended += 1

    streamer = Drafts()
    options = {"max_new_tokens": 4, "min_new_tokens": 2, "generator": generators(1), "return_trace": True}
    output = generate(loaded, prompts(1, 3), return_dict_in_generate=True, streamer=streamer, **options)
    expected = sampler.sample(prompts(1, 3), **options | {"generator": generators(1)})
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.quality.nan_to_num(), expected.quality.nan_to_num())
    assert len(output.trace) == len(expected.trace) == len(streamer.drafts)
    assert streamer.ended == 1


def test_an_export_scales_the_quality_too(sampler, tmp_path):
    model = build_model(tiny_tokenizer())
    model.quality_head.temperature, model.quality_head.bias = 3.0, 1.0
    model.prism_config = replace(model.prism_config, quality_temperature=3.0, quality_bias=1.0)
    scaled = RemaskingSampler.from_preset("prism", model, num_steps=5)
    export_sampler(scaled, tmp_path / "out")
    request = {"max_new_tokens": 4, "generator": generators(1)}
    plain = BertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    quality = generate(plain, prompts(1, 3), return_dict_in_generate=True, **request).quality
    request["generator"] = generators(1)
    assert torch.equal(quality.nan_to_num(), scaled.sample(prompts(1, 3), **request).quality.nan_to_num())
    request["generator"] = generators(1)
    unscaled = sampler.sample(prompts(1, 3), **request).quality.logit() / 3 + 1
    torch.testing.assert_close(quality.logit(), unscaled, equal_nan=True, atol=1e-4, rtol=1e-4)


REFUSED: dict[str, tuple[dict, str]] = {
    "unknown": (
        {"do_sample": True, "top_k": None},
        r"takes no 'do_sample': its settings are in sampler_config.json, and a call",
    ),
    "nothing": ({"input_ids": None}, r"Token ids must be given once, as `input_ids` or by position"),
    "twice": ({"inputs": prompts(1, 3)}, r"Token ids must be given once"),
    "trace": ({"return_trace": True}, r"`return_trace` would be ignored without `return_dict_in_generate=True`"),
    "types": ({"token_type_ids": torch.ones(1, 3, dtype=torch.long)}, r"`token_type_ids` must be zeros"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_ignored_is_refused(loaded, case):
    changes, words = REFUSED[case]
    with pytest.raises(ConfigurationError, match=words):
        generate(loaded, **{"input_ids": prompts(1, 3), "max_new_tokens": 4} | changes)


def test_zeros_of_a_tokenizer_are_fine(loaded):
    zeros = torch.zeros(1, 3, dtype=torch.long)
    assert generate(loaded, input_ids=prompts(1, 3), token_type_ids=zeros, max_new_tokens=4).shape == (1, 7)


def change(name: str, **values) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return write


def test_what_is_no_sampler_is_not_exported(sampler, tmp_path):
    with pytest.raises(ConfigurationError, match="made of a RemaskingSampler, got PrismModel; make one with"):
        export_sampler(sampler.model, tmp_path / "out")


DAMAGED = {
    "no code": (
        lambda folder: (folder / "custom_generate/backbone.json").unlink(),
        r"custom_generate/backbone\.json is missing; a folder written by .* or `export_sampler` has it",
    ),
    "no head": (lambda folder: (folder / "quality_head.safetensors").unlink(), r"quality_head\.safetensors is missing"),
    "other code": (
        change("custom_generate/backbone.json", spce={}),
        r"backbone\.json: nothing reads 'spce' .did you mean 'spec'",
    ),
    "half a family": (
        change("custom_generate/backbone.json", spec={}),
        r"backbone\.json, `spec` needs 'activation_checkpointing', ",
    ),
    "text for an integer": (
        change("custom_generate/backbone.json", tokenizer={"pad_token_id": "0", "eos_token_id": None}),
        r"backbone\.json, `tokenizer`: `pad_token_id` must be an integer or null, found '0'",
    ),
    "no tokenizer said": (
        change("custom_generate/backbone.json", tokenizer=3),
        r"`tokenizer` must be a mapping of settings or",
    ),
    "other model": (change("prism_config.json", backbone_vocab_size=99), r"`backbone_vocab_size` must be 32 .* found 99"),
    "other rule": (change("sampler_config.json", remasking={"name": "foreign"}), r"No remasking rule is called 'foreign'"),
    "no sampler": (
        lambda folder: (folder / "sampler_config.json").unlink(),
        r"sampler_config\.json is missing; a folder written by",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_folder_that_is_not_whole(sampler, tmp_path, loaded, damage):
    export_sampler(sampler, tmp_path / "out")
    spoil, words = DAMAGED[damage]
    spoil(tmp_path / "out")
    with pytest.raises((StoredStateError, UnknownNameError), match=words):
        generate(loaded, prompts(1, 3), max_new_tokens=4, sampler_path=tmp_path / "out")


def test_a_path_that_is_not_there(loaded):
    with pytest.raises(
        StoredStateError, match=r"`sampler_path` must be the folder of an exported sampler, .* found 'no/where'"
    ):
        generate(loaded, prompts(1, 3), max_new_tokens=4, sampler_path="no/where")


def test_an_adapter_that_is_not_on_the_model(sampler, tmp_path, loaded):
    config = PrismConfig(mask_token_id=MASK, backbone_name="someone/tiny")
    model = attach_quality_head(tiny_backbone(), config, lora=LoraConfig(r=2))
    export_sampler(replace(sampler, model=model), tmp_path / "out", merge=False)
    with pytest.raises(ConfigurationError, match=r"trained with the adapter that lies beside it, .* call `model.load_adapter"):
        generate(loaded, prompts(1, 3), max_new_tokens=4, sampler_path=tmp_path / "out")


def test_a_causal_model_is_refused(tmp_path):
    model = attach_quality_head(tiny_backbone("llama"), PrismConfig(mask_token_id=MASK))
    sampler = RemaskingSampler(model, num_steps=4, remasking=QualityRemasking(), schedule=EvenSchedule(1))
    export_sampler(sampler, tmp_path / "out")
    plain = model.detach()
    plain.config.is_causal = True
    with pytest.raises(BackboneError, match=r"set `backbone\.config\.is_causal = False`"):
        generate(plain, prompts(1, 3), max_new_tokens=4, sampler_path=tmp_path / "out")


def test_a_model_that_does_not_say_where_it_came_from(sampler):
    with pytest.raises(ConfigurationError, match=r"`sampler_path` must be given, since the model does not say where"):
        generate(sampler.model.plain_backbone, prompts(1, 3), max_new_tokens=4)


def test_the_card_tells_how_to_load_it(folder):
    card = (folder / "README.md").read_text()
    assert re.search(
        r"^library_name: transformers\ntags:\n- prism\n- masked-diffusion\n- custom_generate\n", card, re.MULTILINE
    )
    assert "| schedule | even (num_remask 4, remask_from 0.0, remask_until 1.0) |" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 6
    code = code.replace("path or id of this folder", str(folder)).replace("a text with mask tokens", "the [MASK][MASK] sat")
    exec(code, {})
