"""Models that bring their own code: loaded only with consent, by the class that their config names, and saved whole."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from remote_families import MASK, STANDIN_FAMILIES, STANDINS, checked_out_families

import prism_plugin as prism
from prism_plugin.backbones import (
    dropout_off,
    get_backbone_spec,
    get_spec_by_model_type,
    load_backbone,
    load_tokenizer,
    pairwise_mask,
)
from prism_plugin.data import Origin
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling.persistence import load_weights
from prism_plugin.training.given_rows import as_prepared

IDS = torch.arange(2, 16).view(2, 7)


@pytest.fixture
def llada(tmp_path):
    STANDIN_FAMILIES["llada"].save(tmp_path)
    return tmp_path


def test_code_runs_only_with_consent(llada):
    (llada / "configuration_llada.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    with pytest.raises(BackboneError, match=r"'llada' model that brings its own Python code.*pass `trust_remote_code=True`"):
        load_backbone(llada)


def test_code_that_needs_a_package_that_is_not_there(llada):
    path = llada / "modeling_llada.py"
    path.write_text("import package_that_nobody_has\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(BackboneError, match=r"could not be imported \(.*packages that were not found.*package_that_nobody_has"):
        load_backbone(llada, trust_remote_code=True)


def test_code_of_another_transformers_that_nothing_mends(llada):
    path = llada / "modeling_llada.py"
    path.write_text(path.read_text(encoding="utf-8").replace("super().__init__(config)", "self.nowhere", 1), encoding="utf-8")
    with pytest.raises(BackboneError, match=r"The weights of the 'llada' backbone .* could not be loaded \(.*nowhere"):
        load_backbone(llada, trust_remote_code=True)


def test_a_config_that_names_no_class_for_the_model(llada):
    config = json.loads((llada / "config.json").read_text(encoding="utf-8"))
    config["auto_map"].pop("AutoModel")
    (llada / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        BackboneError, match=r"must say in `auto_map` which classes AutoConfig and AutoModel are, found \['AutoConfig'\]"
    ):
        load_backbone(llada, trust_remote_code=True)


@pytest.mark.parametrize("auto_class", ["AutoModelForCausalLM", "AutoModelForMaskedLM"])
def test_any_auto_class_that_the_config_names_will_do(tmp_path, auto_class):
    family = STANDIN_FAMILIES["llada"]
    auto_map = {"AutoConfig": family.auto_map["AutoConfig"], auto_class: family.auto_map["AutoModel"]}
    replace(family, auto_map=auto_map).save(tmp_path)
    assert load_backbone(tmp_path, trust_remote_code=True)(input_ids=IDS).logits.shape == (2, 7, 32)


def test_dtype_is_the_saved_one_unless_told(llada):
    assert load_backbone(llada, trust_remote_code=True).dtype == torch.float32
    assert load_backbone(llada, trust_remote_code=True, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_checkpoint_with_a_weight_too_few(llada):
    config = json.loads((llada / "config.json").read_text(encoding="utf-8"))
    (llada / "config.json").write_text(json.dumps(config | {"n_layers": 3}), encoding="utf-8")
    with pytest.raises(BackboneError, match=r"must hold every weight of LLaDAModelLM, but 9 are missing"):
        load_backbone(llada, trust_remote_code=True)


def test_a_tied_llada_that_was_loaded_otherwise_is_refused(tmp_path):
    built = STANDIN_FAMILIES["llada"].save(tmp_path, weight_tying=True)
    with pytest.raises(BackboneError, match=r"must have `config.weight_tying=False`, found True; load it with `load_backbone`"):
        prism.attach_quality_head(built)


def test_lora_on_the_blocks_ff_out_is_told_from_the_lm_head(llada):
    backbone = load_backbone(llada, trust_remote_code=True)
    with pytest.raises(ConfigurationError, match=r"must not adapt the LM head.*match model.transformer.ff_out"):
        prism.attach_quality_head(backbone, lora=LoraConfig(r=2, target_modules=["ff_out"]))
    model = prism.attach_quality_head(backbone, lora=LoraConfig(r=2, target_modules=r".*blocks\.\d+\.ff_out"))
    assert model.backbone.base_model.targeted_module_names == [f"model.transformer.blocks.{i}.ff_out" for i in range(2)]


def test_the_code_travels_with_merged_weights(llada, tmp_path):
    backbone = load_backbone(llada, trust_remote_code=True)
    model = prism.attach_quality_head(backbone, lora=LoraConfig(r=2, init_lora_weights=False))
    model.merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    again = prism.PrismModel.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    index = torch.arange(4)
    torch.testing.assert_close(again(IDS, logits_at=index).logits, model.eval()(IDS, logits_at=index).logits)


def test_class_names_go_before_model_types():
    assert get_spec_by_model_type("llada").model_type == "llada"
    assert get_spec_by_model_type("llada", ["LLaDAModelLM"]).model_type == "llada"
    assert get_spec_by_model_type("llada", ["LLaDAMoEModelLM"]).model_type == "lladamoe"


def test_the_mask_token_of_another_vocabulary_is_not_guessed(tmp_path):
    STANDIN_FAMILIES["llada"].save(tmp_path, mask_token_id=None)
    backbone = load_backbone(tmp_path, trust_remote_code=True)
    with pytest.raises(prism.PrismError, match=r"No mask token id is known for this 'llada' model"):
        prism.attach_quality_head(backbone)
    assert get_backbone_spec(backbone).mask_token_id == 126336
    assert prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=MASK)).mask_token_id == MASK


def test_two_families_of_one_model_type_in_one_process(tmp_path):
    """LLaDA's code registers its config for "llada", which LLaDA-MoE calls itself too."""
    for name in ("llada", "lladamoe", "llada"):
        built = STANDIN_FAMILIES[name].save(tmp_path / name)
        assert built.config.model_type == "llada"
        loaded = load_backbone(tmp_path / name, trust_remote_code=True)
        assert type(loaded).__name__ == type(built).__name__
        assert type(loaded.config).__name__ == type(built.config).__name__
    with pytest.raises(BackboneError, match="runs only with your consent"):
        load_backbone(tmp_path / "llada")  # also where its class was registered meanwhile


def test_llada2_sees_blocks_of_32_and_what_is_before(tmp_path):
    STANDIN_FAMILIES["llada2_moe"].save(tmp_path)
    model = prism.attach_quality_head(
        load_backbone(tmp_path, trust_remote_code=True), prism.PrismConfig(mask_token_id=MASK)
    ).eval()
    ids = torch.randint(2, 30, (1, 64))
    for changed, reached in ((10, range(64)), (40, range(32, 64))):
        other = ids.clone()
        other[0, changed] = (ids[0, changed] - 1) % 28 + 2
        states = (model(tokens, output_hidden_states=True).hidden_states for tokens in (ids, other))
        moved = (next(states) - next(states)).abs().amax(-1)[0]
        assert [i for i in range(64) if moved[i] > 1e-5] == list(reached)


def test_llada2_turns_causal_under_a_2d_mask(tmp_path):
    """Why its spec asks for another form; the stand-in does what dLLM's copies of the code do."""
    STANDIN_FAMILIES["llada2_moe"].save(tmp_path)
    backbone = load_backbone(tmp_path, trust_remote_code=True).eval()
    mask = torch.ones_like(IDS)
    mask[1, -1] = 0
    other = IDS.clone()
    other[0, -1] = 30
    first = [backbone(input_ids=tokens, attention_mask=mask).logits[0, 0] for tokens in (IDS, other)]
    assert torch.equal(*first)
    first = [backbone(input_ids=tokens, attention_mask=pairwise_mask(mask.bool())).logits[0, 0] for tokens in (IDS, other)]
    assert not torch.equal(*first)


def test_a_time_conditioned_mdlm_is_refused(tmp_path):
    STANDIN_FAMILIES["mdlm"].save(tmp_path, time_conditioning=True)
    backbone = load_backbone(tmp_path, trust_remote_code=True)
    with pytest.raises(BackboneError, match=r"must have `config.time_conditioning=False`, found True"):
        prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=MASK))


@pytest.mark.parametrize(("name", "vocab_size", "mask_token_id"), [("illada", 155136, 5), ("lladamoe", 157184, 156895)])
def test_the_spec_knows_the_mask_token_of_released_vocabularies(tmp_path, name, vocab_size, mask_token_id):
    STANDIN_FAMILIES[name].save(tmp_path, vocab_size=vocab_size, hidden_size=4, intermediate_size=4)
    model = prism.attach_quality_head(load_backbone(tmp_path, trust_remote_code=True))
    assert model.mask_token_id == mask_token_id


DROPOUTS = {
    "llada": {"attention_dropout": 0.5},  # read from the config at every call
    "illada": {"attention_dropout": 0.5},
    "llada2_moe": {"attention_dropout": 0.5},
    "dream": {"attention_dropout": 0.5},
    "mdlm": {"dropout": 0.5},
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_off_finds_every_dropout(tmp_path, name):
    STANDIN_FAMILIES[name].save(tmp_path, **DROPOUTS[name])
    model = prism.attach_quality_head(load_backbone(tmp_path, trust_remote_code=True), prism.PrismConfig(mask_token_id=MASK))
    quiet = model.eval()(IDS, output_hidden_states=True).hidden_states
    config = model.config.to_dict()
    model.train()
    with dropout_off(model):
        assert torch.equal(model(IDS, output_hidden_states=True).hidden_states, quiet)
    assert not torch.allclose(model(IDS, output_hidden_states=True).hidden_states, quiet, atol=1e-3)
    assert model.config.to_dict() == config


def test_dreams_logits_are_about_the_next_token(tmp_path):
    STANDIN_FAMILIES["dream"].save(tmp_path)
    model = prism.attach_quality_head(load_backbone(tmp_path, trust_remote_code=True), prism.PrismConfig(mask_token_id=MASK))
    own = model.backbone(input_ids=IDS, use_cache=False).logits
    about = model(IDS, logits_at=torch.tensor([0, 5, 8])).logits  # row 0: positions 0 and 5, row 1: position 1
    torch.testing.assert_close(about, torch.stack([own[0, 0], own[0, 4], own[1, 0]]), atol=1e-5, rtol=0)


def test_a_vocabulary_that_is_padded_may_be_drawn_from(tmp_path):
    """LLaDA's `embedding_size` may be above `vocab_size`; what was drawn can be sampled from, rated and trained on."""
    STANDIN_FAMILIES["llada"].save(tmp_path, embedding_size=64)
    model = prism.attach_quality_head(load_backbone(tmp_path, trust_remote_code=True))
    sampler = prism.RemaskingSampler.from_preset("prism", model, num_steps=2)
    drawn = sampler.sample(IDS, max_new_tokens=8, generator=torch.Generator().manual_seed(0)).sequences
    assert drawn.max() >= 32
    assert sampler.sample(drawn, max_new_tokens=2).sequences.shape == (2, 17)
    assert model.score(drawn).shape == drawn.shape
    rows = [{"example_id": 0, "input_ids": drawn[0].tolist(), "maskable": [True] * 15}]
    assert as_prepared(rows, model, Origin("rows"))


@pytest.mark.parametrize("name", ["llada", "mdlm"])
def test_a_trained_backbone_is_loaded_again_with_consent_and_resumed_without(tmp_path, name):
    """To resume, the class in memory takes the weights: the code that was saved beside them is not run once more."""
    STANDIN_FAMILIES[name].save(tmp_path / "backbone")

    def attach():
        config = prism.PrismConfig(mask_token_id=MASK, train_backbone=True)
        return prism.attach_quality_head(load_backbone(tmp_path / "backbone", trust_remote_code=True), config)

    trained, saved = attach(), tmp_path / "trained"
    for parameter in trained.parameters():
        parameter.data.mul_(1.1)
    trained.save_pretrained(saved)
    looked = trained(IDS, logits_at=IDS > 4)
    with pytest.raises(BackboneError, match="brings its own Python code"):
        prism.PrismModel.from_pretrained(saved)
    again = prism.PrismModel.from_pretrained(saved, trust_remote_code=True)
    resumed = attach()
    for path in saved.glob("*.py"):
        path.write_text("raise SystemExit('it ran')", encoding="utf-8")
    load_weights(resumed, saved)
    for model in (again, resumed):
        found = model(IDS, logits_at=IDS > 4)
        assert torch.equal(found.logits, looked.logits)
        assert torch.equal(found.quality_logits, looked.quality_logits)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("name", STANDIN_FAMILIES)
def test_an_adapter_for_a_task_changes_no_call(tmp_path, name, task_type):
    """PEFT's classes for tasks pass on arguments, such as an attention mask, that MDLM and others do not have."""
    family = STANDIN_FAMILIES[name]
    family.save(tmp_path / "backbone")
    config = prism.PrismConfig(mask_token_id=MASK)
    with family.described():
        backbone = load_backbone(tmp_path / "backbone", trust_remote_code=True)
        model = prism.attach_quality_head(backbone, config, lora=LoraConfig(r=2, task_type=task_type))
    assert model(IDS).quality_logits.shape == IDS.shape
    model.save_pretrained(tmp_path / "head")
    assert json.loads((tmp_path / "head" / "adapter_config.json").read_text())["task_type"] == task_type


def test_rows_with_padding_are_not_scored_without_a_mask(tmp_path):
    STANDIN_FAMILIES["mdlm"].save(tmp_path)
    model = prism.attach_quality_head(load_backbone(tmp_path, trust_remote_code=True), prism.PrismConfig(mask_token_id=MASK))
    assert model.score(IDS, torch.ones_like(IDS)).shape == IDS.shape
    with pytest.raises(ConfigurationError, match=r"mdlm takes no attention mask, so the rows .* score rows of one length"):
        model.score(IDS, IDS > 2)


def test_a_tokenizers_code_that_fails_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "Dream"}', encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization.Tokens", null]}}')
    (tmp_path / "tokenization.py").write_text("from transformers import a_name_that_is_gone\n\n\nclass Tokens: ...\n")
    with pytest.raises(BackboneError, match=r"The tokenizer in .* could not be read \(.*a_name_that_is_gone"):
        load_tokenizer(tmp_path, trust_remote_code=True)


def test_real_code_is_found_by_a_mapping_from_family_to_folder(tmp_path, monkeypatch):
    (tmp_path / "here").symlink_to(STANDINS)
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"llada": "here", "llada:again": str(STANDINS)}))
    monkeypatch.setenv("PRISM_REMOTE_CODE", str(path))
    found = checked_out_families()
    assert list(found) == ["llada:mapped", "llada:again"]
    assert all((family.root / "modeling_llada.py").is_file() for family in found.values())
    for mapped, words in (
        ({"lada": "here"}, "no code is known for lada; known are llada,"),
        ({"dream": "here"}, "holds no config"),
    ):
        path.write_text(json.dumps(mapped))
        with pytest.raises(AssertionError, match=words):
            checked_out_families()
