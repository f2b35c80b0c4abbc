import json
import os
from dataclasses import replace

import pytest
import torch
from small_samplers import MASK, build_model, generators, prompts

from prism_plugin.core import EvenSchedule, MarginUnmasking, QualityThresholdRemasking
from prism_plugin.errors import ConfigurationError, SavingError, StoredStateError, UnknownKeyError, UnknownNameError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import PRESETS, SAMPLER_CONFIG_NAME, RemaskingSampler
from prism_plugin.testing import tiny_tokenizer


@pytest.fixture
def sampler(model):
    return RemaskingSampler(
        model,
        num_steps=9,
        unmasking=MarginUnmasking(),
        remasking=QualityThresholdRemasking(0.4),
        schedule=EvenSchedule(2, remask_from=0.25),
        temperature=0.7,
        top_p=0.9,
        block_length=4,
        eos_token_id=1,
        max_remasks_per_position=2,
    )


def test_the_file_is_as_documented(sampler, tmp_path):
    sampler.save_pretrained(tmp_path / "new folder")
    assert json.loads((tmp_path / "new folder" / SAMPLER_CONFIG_NAME).read_text()) == {
        "format_version": 1,
        "num_steps": 9,
        "unmasking": {"name": "margin"},
        "remasking": {"name": "quality_threshold", "threshold": 0.4},
        "schedule": {"name": "even", "num_remask": 2, "remask_from": 0.25, "remask_until": 1.0},
        "temperature": 0.7,
        "top_p": 0.9,
        "block_length": 4,
        "eos_token_id": 1,
        "max_remasks_per_position": 2,
    }
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == [SAMPLER_CONFIG_NAME]


@pytest.mark.parametrize("name", [None, *sorted(PRESETS)])
def test_a_saved_sampler_gives_the_same_sequences(sampler, model, tmp_path, name):
    if name is not None:
        sampler = RemaskingSampler.from_preset(name, model, num_steps=5)
    sampler.save_pretrained(tmp_path)
    loaded = RemaskingSampler.from_pretrained(tmp_path, model)
    assert loaded.to_dict() == sampler.to_dict()
    one, other = (
        which.sample(prompts(3, 4), max_new_tokens=8, generator=generators(1, 2, 3)).sequences for which in (sampler, loaded)
    )
    assert torch.equal(one, other)


def test_sampler_and_model_load_from_one_folder(tmp_path):
    tokenizer, backbone = tiny_tokenizer(), build_model().detach()
    backbone.save_pretrained(tmp_path / "backbone")
    backbone = type(backbone).from_pretrained(tmp_path / "backbone")
    text_model = attach_quality_head(backbone, PrismConfig(mask_token_id=MASK), tokenizer=tokenizer)
    torch.nn.init.normal_(text_model.quality_head.layers[-1].weight)
    sampler = RemaskingSampler.from_preset("prism-confidence", text_model, num_steps=5)
    text_model.save_pretrained(tmp_path / "prism")
    sampler.save_pretrained(tmp_path / "prism")
    loaded = RemaskingSampler.from_pretrained(tmp_path / "prism")
    assert loaded.to_dict() == sampler.to_dict()
    assert loaded.generate(["abc"], max_new_tokens=8) == sampler.generate(["abc"], max_new_tokens=8)


def test_a_lambda_cannot_be_saved_and_the_old_file_stays(sampler, tmp_path):
    sampler.save_pretrained(tmp_path)
    before = (tmp_path / SAMPLER_CONFIG_NAME).read_bytes()
    with pytest.raises(UnknownNameError, match="Only a registered unmasking rule can be saved, found function"):
        replace(sampler, unmasking=lambda view, budget: view.masked).save_pretrained(tmp_path)
    assert (tmp_path / SAMPLER_CONFIG_NAME).read_bytes() == before


def test_a_failed_write_leaves_the_old_file_and_nothing_else(sampler, tmp_path, monkeypatch):
    sampler.save_pretrained(tmp_path)
    before = (tmp_path / SAMPLER_CONFIG_NAME).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SavingError, match=r"sampler_config.json.*No space left.*unchanged"):
        replace(sampler, num_steps=12).save_pretrained(tmp_path)
    assert (tmp_path / SAMPLER_CONFIG_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [SAMPLER_CONFIG_NAME]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda v: v | {"temprature": 1.0}, UnknownKeyError, "sampler_config.json: .*'temprature'"),
        (lambda v: v | {"format_version": 2}, StoredStateError, "`format_version` must be 1, found 2"),
        (lambda v: {k: x for k, x in v.items() if k != "format_version"}, StoredStateError, "must be 1, found None"),
        (lambda v: {k: x for k, x in v.items() if k != "num_steps"}, ConfigurationError, "num_steps"),
        (lambda v: v | {"num_steps": 0}, ConfigurationError, "`num_steps` must be an integer of at least 1, got 0"),
        (lambda v: v | {"unmasking": {"name": "margins"}}, UnknownNameError, "margins.*did you mean 'margin'"),
        (lambda v: v | {"unmasking": {"name": "margin", "by": 1}}, UnknownKeyError, "sampler_config.json.*unmasking.*'by'"),
        (lambda v: v | {"remasking": "quality"}, ConfigurationError, "sampler_config.json.*remasking.*mapping"),
        (
            lambda v: v | {"num_steps": "9"},
            ConfigurationError,
            "sampler_config.json: `num_steps` must be an integer, found '9'",
        ),
        (lambda v: v | {"top_p": float("nan")}, ConfigurationError, "sampler_config.json: `top_p` must be a number, found nan"),
        (lambda v: v | {"format_version": True}, StoredStateError, "`format_version` must be 1, found True"),
        (lambda v: v | {"format_version": 1.0}, StoredStateError, "`format_version` must be 1, found 1.0"),
        (lambda v: v | {"editing": 3}, ConfigurationError, "sampler_config.json, `editing` must be a mapping with the editing"),
        (
            lambda v: v | {"schedule": {"name": "even", "num_remask": -1}},
            ConfigurationError,
            "sampler_config.json, `schedule`: `num_remask` of EvenSchedule must be an integer of at least 0, found -1",
        ),
        (lambda v: [v], StoredStateError, "must hold a JSON object, found a list"),
    ],
)
def test_files_with_anything_else_are_refused(sampler, model, tmp_path, change, error, words):
    (tmp_path / SAMPLER_CONFIG_NAME).write_text(json.dumps(change(sampler.to_dict())))
    with pytest.raises(error, match=words):
        RemaskingSampler.from_pretrained(tmp_path, model)


def test_missing_and_broken_files_are_refused(model, tmp_path):
    with pytest.raises(
        StoredStateError,
        match=r"sampler_config\.json is missing; a folder written by `RemaskingSampler.save_pretrained` has it",
    ):
        RemaskingSampler.from_pretrained(tmp_path, model)
    for content in (b'{"num_steps":', b"\xff\xfe{", b'{"num_steps": 4, "num_steps": 8}'):
        (tmp_path / SAMPLER_CONFIG_NAME).write_bytes(content)
        with pytest.raises(StoredStateError, match="must be a JSON file, but it cannot be read: "):
            RemaskingSampler.from_pretrained(tmp_path, model)
