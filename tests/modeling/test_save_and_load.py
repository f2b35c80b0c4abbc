"""What is saved comes back bit for bit; whatever does not fit is refused in one sentence."""

import json
import re
import shutil

import pytest
import torch
from moved_weights import trained
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from saved_folders import ADAPTER, BACKBONE, OURS, TOKENIZER, contents, names

from prism_plugin.backbones import load_backbone
from prism_plugin.errors import BackboneError, ConfigurationError, PrismError, StoredStateError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.persistence import load_weights
from prism_plugin.testing import tiny_backbone


def answers(model, ids):
    output = model(ids, logits_at=torch.ones_like(ids).bool())
    return output.logits, output.quality_logits


def assert_same(one, two, ids):
    for a, b in zip(answers(one, ids), answers(two, ids), strict=True):
        assert torch.equal(a, b)


def add_text(path, text):
    path.write_text(path.read_text().rstrip().removesuffix("}") + f", {text}}}")


def change_tensors(path, change):
    save_file({key: change(value) for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


def edit(path, **values):
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (stored | values).items() if value != "DROP"}))


def test_files_and_what_is_in_them(project):
    folder = project / "weights"
    assert names(folder) == OURS | ADAPTER | TOKENIZER
    assert names(project) == {"backbone", "weights"}, "a temporary folder was left behind"
    head = load_file(folder / "quality_head.safetensors")
    assert {tensor.dtype for tensor in head.values()} == {torch.float32}
    assert all("lora_" in key for key in load_file(folder / "adapter_model.safetensors"))
    config = json.loads((folder / "prism_config.json").read_text())
    assert (config["format_version"], config["mask_token_id"], config["backbone_name"]) == (1, 31, "../backbone")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "../backbone"
    for path in folder.glob("*.json"):
        assert str(project) not in path.read_text(), f"{path.name} tells a path of this machine"


def test_save_load_same_answers(project, ids):
    first = PrismModel.from_pretrained(project / "weights")
    second = PrismModel.from_pretrained(str(project / "weights"), backbone=load_backbone(project / "backbone"))
    assert_same(first, second, ids)
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())
    assert first.tokenizer.mask_token_id == 31
    assert (first.score(["abc"]) > 0).all()


@pytest.mark.parametrize("adapter", ["none", "lora", "lora and a whole module"])
@pytest.mark.parametrize("head", ["mlp", "linear"])
@pytest.mark.parametrize("family", ["bert", "esm", "llama"])
def test_every_kind_comes_back(tmp_path, ids, family, head, adapter):
    tiny_backbone(family).save_pretrained(tmp_path / "backbone")
    whole = {"bert": "cls", "esm": "emb_layer_norm_after", "llama": "norm"}[family]
    lora = None if adapter == "none" else LoraConfig(r=2, modules_to_save=None if adapter == "lora" else [whole])
    config = PrismConfig(mask_token_id=31, head=head, objective={"name": "prism", "num_drafts": 2})
    model = trained(attach_quality_head(load_backbone(tmp_path / "backbone"), config, lora=lora))
    model.save_pretrained(tmp_path / "weights")
    loaded = PrismModel.from_pretrained(tmp_path / "weights")
    assert_same(model, loaded, ids)
    assert loaded.prism_config == model.prism_config


def test_saving_twice_gives_the_same_files(project):
    model = PrismModel.from_pretrained(project / "weights")
    model.save_pretrained(project / "weights")
    before = contents(project / "weights")
    model.save_pretrained(project / "weights")
    assert contents(project / "weights") == before


def test_folders_can_move_together(project, ids, monkeypatch):
    model = PrismModel.from_pretrained(project / "weights")
    shutil.copytree(project, project.parent / "elsewhere")
    shutil.rmtree(project / "backbone")
    monkeypatch.chdir(project.parent / "elsewhere")
    assert_same(model, PrismModel.from_pretrained("./weights"), ids)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 reads the old name
def test_peft_loads_the_adapter_without_us(project, ids):
    model = PrismModel.from_pretrained(project / "weights")
    without_us = PeftModel.from_pretrained(load_backbone(project / "backbone"), project / "weights")
    assert torch.equal(without_us(input_ids=ids).logits.flatten(0, 1), answers(model, ids)[0])


def test_is_trainable_lets_training_go_on(project):
    model = PrismModel.from_pretrained(project / "weights", is_trainable=True)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if "lora_" in name or name.startswith("quality_head.")}


def test_a_trained_backbone_is_saved_along(tmp_path, ids):
    model = trained(attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31, train_backbone=True)))
    model.save_pretrained(tmp_path / "whole")
    assert names(tmp_path / "whole") >= BACKBONE
    loaded = PrismModel.from_pretrained(tmp_path / "whole", is_trainable=True)
    assert_same(model, loaded, ids)
    assert all(p.requires_grad for p in loaded.parameters())
    with pytest.raises(ConfigurationError, match="holds the backbone that its head was trained with; leave `backbone` "):
        PrismModel.from_pretrained(tmp_path / "whole", backbone=tiny_backbone())


def test_a_merged_backbone_is_saved_along(project, ids):
    model = PrismModel.from_pretrained(project / "weights")
    model.merge_and_unload()
    model.save_pretrained(project / "weights")
    assert names(project / "weights") == OURS | TOKENIZER | BACKBONE, "the old adapter must go"
    loaded = PrismModel.from_pretrained(project / "weights")
    assert_same(model, loaded, ids)
    fresh = attach_quality_head(load_backbone(project / "backbone"), PrismConfig(mask_token_id=31))
    with pytest.raises(StoredStateError, match="found one with merged weights in the folder itself"):
        load_weights(fresh, project / "weights")


@pytest.mark.parametrize("lora", [LoraConfig(r=2), None], ids=["lora", "whole"])
def test_gathered_state_dict_is_written(tmp_path, ids, lora):
    def fresh():
        torch.manual_seed(0)
        return attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31, train_backbone=lora is None), lora=lora)

    model = trained(fresh())
    gathered = {f"_orig_mod.{key}": value.clone() for key, value in model.state_dict().items()}
    fresh().save_pretrained(tmp_path, state_dict=gathered)
    other = fresh()
    load_weights(other, tmp_path)
    assert_same(model, other, ids)


def test_load_weights_of_a_run(lora_model, tmp_path, ids):
    lora_model.save_pretrained(tmp_path)
    before = answers(lora_model, ids)
    flags = [p.requires_grad for p in lora_model.parameters()]
    trained(lora_model)
    load_weights(lora_model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(answers(lora_model, ids), before, strict=True))
    assert [p.requires_grad for p in lora_model.parameters()] == flags


BROKEN = {
    "no config": (lambda d: (d / "prism_config.json").unlink(), r"prism_config.json is missing; a folder written by"),
    "no json": (
        lambda d: (d / "prism_config.json").write_text("{"),
        r"prism_config.json must be a JSON file, but it cannot be",
    ),
    "a key twice": (
        lambda d: add_text(d / "prism_config.json", '"head": "linear"'),
        r"prism_config.json must be a JSON file, but it cannot be read: head given twice",
    ),
    "head of integers": (
        lambda d: change_tensors(d / "quality_head.safetensors", lambda one: one.long()),
        r"quality_head.safetensors: `layers.0.bias` should be of dtype float32, found int64",
    ),
    "adapter of integers": (
        lambda d: change_tensors(d / "adapter_model.safetensors", lambda one: one.int()),
        r"adapter_model.safetensors: `base_model.*lora_A.weight` should be of dtype float32, found int32",
    ),
    "head of NaN": (
        lambda d: change_tensors(d / "quality_head.safetensors", lambda one: one / 0),
        r"quality_head.safetensors: `layers.* must hold finite numbers, found NaN or infinity",
    ),
    "adapter with one infinity": (
        lambda d: change_tensors(d / "adapter_model.safetensors", lambda one: one.index_fill(0, torch.tensor(0), torch.inf)),
        r"adapter_model.safetensors: `base_model.* must hold finite numbers, found NaN or infinity",
    ),
    "a list": (
        lambda d: (d / "prism_config.json").write_text("[]"),
        r"prism_config.json must hold a JSON object, found a list",
    ),
    "version": (
        lambda d: edit(d / "prism_config.json", format_version=7),
        r"prism_config.json: `format_version` must be 1, found 7",
    ),
    "unknown": (
        lambda d: edit(d / "prism_config.json", heads=1),
        r"prism_config.json: nothing reads 'heads' .did you mean 'head'",
    ),
    "key gone": (
        lambda d: edit(d / "prism_config.json", head="DROP"),
        r"prism_config.json needs 'head'; add it",
    ),
    "value": (
        lambda d: edit(d / "prism_config.json", base_rate=2.0),
        r"prism_config.json: `base_rate` of PrismConfig must be strictly",
    ),
    "type": (
        lambda d: edit(d / "prism_config.json", base_rate="high"),
        r"prism_config.json: `base_rate` must be a number, found 'high'",
    ),
    "a list for text": (
        lambda d: edit(d / "prism_config.json", head=["mlp"]),
        r"prism_config.json: `head` must be text, found \['mlp'\]",
    ),
    "a number for text": (
        lambda d: edit(d / "prism_config.json", backbone_revision=3),
        r"prism_config.json: `backbone_revision` must be text or null, found 3",
    ),
    "text for an objective": (
        lambda d: edit(d / "prism_config.json", objective="prism"),
        r"prism_config.json: `objective` must be a mapping or null, found 'prism'",
    ),
    "version of another type": (
        lambda d: edit(d / "prism_config.json", format_version=True),
        r"prism_config.json: `format_version` must be 1, found True",
    ),
    "mask": (
        lambda d: edit(d / "prism_config.json", mask_token_id=40),
        r"`mask_token_id` must lie in the backbone's vocabulary, \[0, 32\), found 40",
    ),
    "model type": (
        lambda d: edit(d / "prism_config.json", backbone_model_type="esm"),
        r"`backbone_model_type` must be 'bert' .* 'esm'",
    ),
    "width": (
        lambda d: edit(d / "prism_config.json", backbone_hidden_size=24),
        r"`backbone_hidden_size` must be 16 to fit .* found 24",
    ),
    "vocabulary": (
        lambda d: edit(d / "prism_config.json", backbone_vocab_size=8),
        r"`backbone_vocab_size` must be 32 .* found 8",
    ),
    "adapter config gone": (
        lambda d: (d / "adapter_config.json").unlink(),
        r"`has_adapter` must go with adapter_config.json, which is not there, found True",
    ),
    "adapter gone": (lambda d: (d / "adapter_model.safetensors").unlink(), r"adapter_model.safetensors is missing"),
    "adapter type": (
        lambda d: edit(d / "adapter_config.json", peft_type="NEW"),
        r"`peft_type` must be one that .* found 'NEW'",
    ),
    "adapter key": (
        lambda d: edit(d / "adapter_config.json", rank=2),
        r"adapter_config.json: nothing reads 'rank'",
    ),
    "adapter rank": (lambda d: edit(d / "adapter_config.json", r=3), r"lora_A.weight` should be \(3, 16\), found \(2, 16\)"),
    "adapter targets": (
        lambda d: edit(d / "adapter_config.json", target_modules=["query"]),
        r"key.lora_A.weight` should be nothing, found \(2, 16\)",
    ),
    "adapter rank of text": (
        lambda d: edit(d / "adapter_config.json", r="two"),
        r"adapter_config.json: `r` must be an integer, found 'two'",
    ),
    "adapter bias": (
        lambda d: edit(d / "adapter_config.json", bias="some"),
        r"adapter_config.json: `bias` must be one of none, all, lora_only, found 'some'",
    ),
    "adapter task": (
        lambda d: edit(d / "adapter_config.json", task_type="NOPE"),
        r"adapter_config.json: PEFT refuses it: Invalid task type: 'NOPE'",
    ),
    "adapter targets of nothing": (
        lambda d: edit(d / "adapter_config.json", target_modules=["nothing"]),
        r"adapter_config.json: PEFT cannot put this adapter on BertForMaskedLM",
    ),
    "adapter expression": (
        lambda d: edit(d / "adapter_config.json", target_modules="(["),
        r"adapter_config.json: PEFT cannot put this adapter on BertForMaskedLM.*unterminated character set",
    ),
    "adapter tokens": (
        lambda d: edit(d / "adapter_config.json", trainable_token_indices=[999]),
        r"adapter_config.json: PEFT cannot put this adapter on BertForMaskedLM.*index 999 is out of bounds",
    ),
    "adapter refused": (lambda d: edit(d / "adapter_config.json", r=0), r"`r` should be a positive integer"),
    "head gone": (lambda d: (d / "quality_head.safetensors").unlink(), r"quality_head.safetensors is missing"),
    "head kind": (
        lambda d: edit(d / "prism_config.json", head="linear", head_hidden_size=None),
        r"quality_head.safetensors: `layers.1.bias` should be \(1,\), found \(16,\)",
    ),
    "head foreign": (
        lambda d: save_file({"w": torch.zeros(2)}, d / "quality_head.safetensors"),
        r"quality_head.safetensors: `layers.0.bias` should be \(16,\), found nothing",
    ),
    "tokenizer": (
        lambda d: (d / "tokenizer.json").write_text("{"),
        r"The tokenizer in .* could not be read",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused_and_the_backbone_left_alone(project, ids, name):
    damage, message = BROKEN[name]
    damage(project / "weights")
    backbone = load_backbone(project / "backbone")
    logits, keys = backbone(input_ids=ids).logits, list(backbone.state_dict())
    with pytest.raises(PrismError, match=message) as raised:
        PrismModel.from_pretrained(project / "weights", backbone=backbone)
    assert "\n" not in str(raised.value)
    assert torch.equal(backbone(input_ids=ids).logits, logits)
    assert list(backbone.state_dict()) == keys
    assert not backbone.cls._forward_pre_hooks


@pytest.mark.parametrize("kind", ["trained", "merged"])
def test_a_backbone_beside_the_head_must_be_finite(lora_model, tmp_path, kind):
    if kind == "merged":
        lora_model.merge_and_unload()
    own = PrismConfig(mask_token_id=31, train_backbone=True)
    model = lora_model if kind == "merged" else attach_quality_head(tiny_backbone(), own)
    model.save_pretrained(tmp_path)
    last = torch.tensor([-1])  # of the position embeddings, the one that no probe looks at
    change_tensors(tmp_path / "model.safetensors", lambda one: one.index_fill(0, last, torch.nan) if len(one) == 65 else one)
    with pytest.raises(StoredStateError, match=r"position_embeddings.weight` must hold finite numbers, found NaN or infinity"):
        PrismModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "quality_head.safetensors"])
@pytest.mark.parametrize("size", [0, 5, 300])
def test_truncated_files(project, file, size):
    path = project / "weights" / file
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StoredStateError, match=rf"{file} must be a whole safetensors file, but it cannot be read"):
        PrismModel.from_pretrained(project / "weights")


def test_missing_lora_key(project):
    path = project / "weights" / "adapter_model.safetensors"
    tensors = load_file(path)
    gone = sorted(tensors)[3]
    save_file({key: value for key, value in tensors.items() if key != gone}, path)
    with pytest.raises(StoredStateError, match=rf"`{re.escape(gone)}` should be \(\d+, \d+\), found nothing"):
        PrismModel.from_pretrained(project / "weights")


def test_load_weights_is_all_or_nothing(lora_model, tmp_path, ids):
    trained(lora_model).save_pretrained(tmp_path)
    trained(lora_model)
    before = answers(lora_model, ids)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(StoredStateError, match="must be a whole safetensors file"):
        load_weights(lora_model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(answers(lora_model, ids), before, strict=True))


@pytest.mark.parametrize(
    ("config", "lora", "message"),
    [
        (PrismConfig(mask_token_id=31), None, "`has_adapter` must be False to fit this model, found True"),
        (PrismConfig(mask_token_id=30), LoraConfig(r=2), "`mask_token_id` must be 30 to fit this model, found 31"),
        (
            PrismConfig(mask_token_id=31, head="linear"),
            LoraConfig(r=2),
            "`head` must be 'linear' to fit this model, found 'mlp'",
        ),
    ],
)
def test_load_weights_of_other_settings(project, config, lora, message):
    model = attach_quality_head(tiny_backbone(), config, lora=lora)
    with pytest.raises(StoredStateError, match=message):
        load_weights(model, project / "weights")


def test_a_folder_or_repository_that_is_not_there(tmp_path):
    with pytest.raises(StoredStateError, match=r"must be a folder with a prism_config.json, but there is no such folder"):
        PrismModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(StoredStateError, match="is neither a folder nor a repository that can be reached or is cached"):
        PrismModel.from_pretrained("prism-plugin/no-such-head")


def test_the_recorded_backbone_is_gone(project):
    shutil.rmtree(project / "backbone")
    with pytest.raises(BackboneError, match="there is no such folder"):
        PrismModel.from_pretrained(project / "weights")


def test_no_backbone_recorded(lora_model, tmp_path):
    lora_model.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"does not say which backbone it belongs to; say where it is by `backbone`"):
        PrismModel.from_pretrained(tmp_path)
