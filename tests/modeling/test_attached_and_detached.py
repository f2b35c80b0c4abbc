"""A model is attached once, and after `detach` whatever is asked of it gives one sentence."""

import copy

import pytest
import torch
from peft import LoraConfig

import prism_plugin as prism
from prism_plugin.errors import BackboneError, ConfigurationError, DetachedError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler, export_sampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.training import PrismTrainer, PrismTrainingArguments

ROWS = [{"text": "the cat"}] * 8
CARRIERS = {
    "backbone": lambda model: model.plain_backbone,
    "with its adapter": lambda model: model.backbone,
    "model": lambda model: model,
}
# What people do with a model, and what libraries ask of it.
USES = {
    "score": lambda model, sampler, trainer, folder: model.score(["the cat"]),
    "forward": lambda model, sampler, trainer, folder: model(torch.zeros(2, 5, dtype=torch.long)),
    "save": lambda model, sampler, trainer, folder: model.save_pretrained(folder / "out"),
    "push": lambda model, sampler, trainer, folder: model.push_to_hub("me/head"),
    "merge": lambda model, sampler, trainer, folder: model.merge_and_unload(),
    "detach": lambda model, sampler, trainer, folder: model.detach(),
    "config": lambda model, sampler, trainer, folder: model.config,
    "device": lambda model, sampler, trainer, folder: model.device,
    "embeddings": lambda model, sampler, trainer, folder: model.get_input_embeddings(),
    "checkpointing": lambda model, sampler, trainer, folder: model.activation_checkpointing_enable(),
    "generate": lambda model, sampler, trainer, folder: sampler.generate(["the "], max_new_tokens=3),
    "sampler": lambda model, sampler, trainer, folder: RemaskingSampler.from_preset("prism", model, num_steps=3),
    "export": lambda model, sampler, trainer, folder: export_sampler(sampler, folder / "out"),
    "train": lambda model, sampler, trainer, folder: trainer.train(),
    "evaluate": lambda model, sampler, trainer, folder: trainer.evaluate(),
    "trainer": lambda model, sampler, trainer, folder: trainer_of(model, folder),
}


def trainer_of(model, folder, **settings):
    args = PrismTrainingArguments(str(folder / "run"), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    return PrismTrainer(model, args, train_dataset=ROWS, eval_dataset=ROWS, **settings)


@pytest.fixture(scope="module")
def detached(tmp_path_factory):
    """A model that was detached, a sampler and a trainer that were made before, and an empty folder."""
    folder = tmp_path_factory.mktemp("detached")
    model = attach_quality_head(tiny_backbone(), lora=LoraConfig(r=2), tokenizer=tiny_tokenizer())
    sampler, trainer = RemaskingSampler.from_preset("prism", model, num_steps=3), trainer_of(model, folder)
    model.detach()
    return model, sampler, trainer, folder


@pytest.mark.parametrize("use", USES)
def test_any_use_after_detach_is_one_sentence(detached, use):
    with pytest.raises(DetachedError, match=r"gave its backbone back by `detach\(\)`, so it .*; attach a head to that"):
        USES[use](*detached)
    assert not (detached[-1] / "out").exists()


def test_what_asks_whether_something_is_there_gets_an_answer(detached):
    model = detached[0]
    assert not hasattr(model, "hf_device_map")
    assert getattr(model, "nothing", 5) == 5
    assert "QualityHead" in repr(copy.deepcopy(model))


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)], ids=["head alone", "lora"])
def test_attaching_twice_says_detach(carrier, lora):
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31), lora=lora)
    with pytest.raises(BackboneError, match=r"already carries a quality head; call `detach\(\)` on its PrismModel first"):
        attach_quality_head(CARRIERS[carrier](model), lora=LoraConfig(r=2))


def test_a_model_that_was_loaded_for_use_is_not_trained(project, tmp_path):
    model = PrismModel.from_pretrained(project / "weights")
    with pytest.raises(ConfigurationError, match=r"its weights are frozen; load it .*from_pretrained\(.*is_trainable=True"):
        trainer_of(model, tmp_path)
    assert trainer_of(PrismModel.from_pretrained(project / "weights", is_trainable=True), tmp_path)
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31)).requires_grad_(False)
    objective = prism.get_objective("prism", diffusion_weight=0.0)
    with pytest.raises(ConfigurationError, match=r"all of its weights are frozen; let those .*requires_grad_\(\)"):
        trainer_of(model, tmp_path, objective=objective)
