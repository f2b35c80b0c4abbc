"""A backbone that was resized after it was loaded: the rows of its new tokens are saved with the head, and come back."""

import pytest
import torch
from moved_weights import trained
from peft import LoraConfig
from saved_folders import ADAPTER, OURS, TOKENIZER, names

from prism_plugin.backbones import load_backbone
from prism_plugin.errors import ConfigurationError, StoredStateError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.config_file import read_config
from prism_plugin.modeling.persistence import load_weights
from prism_plugin.sampling import RemaskingSampler, export_sampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

OLD, NEW = 32, 35
CASES = {  # family, whose matrices are tied or two, and adapter
    "bert, head alone": ("bert", None),
    "bert, its new rows trained": ("bert", LoraConfig(r=2, trainable_token_indices=[OLD])),
    "llama, lora": ("llama", LoraConfig(r=2)),
}


def tokenizer_with_a_new_mask():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<blank>"})
    return tokenizer


def resized(folder, seed=1):
    """The backbone of a folder, made in another process each time: its new rows are random."""
    backbone = load_backbone(folder)
    backbone.config.mask_token_id = OLD
    torch.manual_seed(seed)
    backbone.resize_token_embeddings(NEW)
    with torch.no_grad():
        backbone.get_input_embeddings().weight[OLD:].normal_()
        backbone.get_output_embeddings().weight[OLD:].normal_()
    return backbone


@pytest.fixture
def bert(tmp_path):
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_a_backbone_that_was_made_smaller_is_refused(bert):
    """Which rows were kept is known to nobody, and the first ones would be loaded."""
    backbone = load_backbone(bert)
    backbone.resize_token_embeddings(20)
    with pytest.raises(ConfigurationError, match=r"has 20 tokens, but was loaded with 32, .* save the backbone with"):
        attach_quality_head(backbone, PrismConfig(mask_token_id=19))


def answers(model, ids):
    with torch.no_grad():
        output = model.eval()(ids, logits_at=ids == OLD)
    return output.logits, output.quality_logits


@pytest.fixture
def canvas():
    ids = torch.randint(2, 31, (3, 7))
    ids[:, ::3] = OLD
    ids[0, 1] = NEW - 1
    return ids


@pytest.mark.parametrize("case", CASES)
def test_the_rows_come_back(tmp_path, canvas, case):
    family, lora = CASES[case]
    checkpoint = tmp_path / "backbone"
    tiny_backbone(family).save_pretrained(checkpoint)
    model = trained(attach_quality_head(resized(checkpoint), lora=lora, tokenizer=tokenizer_with_a_new_mask()))
    assert model.mask_token_id == OLD
    assert model.prism_config.backbone_resized_from == OLD
    model.save_pretrained(tmp_path / "head")
    assert names(tmp_path / "head") == OURS | TOKENIZER | {"new_tokens.safetensors"} | (ADAPTER if lora else set())
    expected = answers(model, canvas)

    loaded = PrismModel.from_pretrained(tmp_path / "head")
    assert loaded.config.vocab_size == NEW
    given = PrismModel.from_pretrained(tmp_path / "head", resized(checkpoint, seed=2))
    elsewhere = PrismModel.from_pretrained(tmp_path / "head", checkpoint)
    for again in (loaded, given, elsewhere):
        assert all(map(torch.equal, answers(again, canvas), expected))
    loaded.save_pretrained(tmp_path / "again")
    assert all(map(torch.equal, answers(PrismModel.from_pretrained(tmp_path / "again"), canvas), expected))


def test_a_run_goes_on_with_its_own_rows_and_the_users_come_back(bert, tmp_path, canvas):
    model = trained(attach_quality_head(resized(bert), lora=LoraConfig(r=2)))
    model.save_pretrained(tmp_path / "checkpoint")
    backbone = resized(bert, seed=2)
    rows = backbone.get_input_embeddings().weight[OLD:].clone()
    again = attach_quality_head(backbone, lora=LoraConfig(r=2))
    for _ in range(2):
        load_weights(again, tmp_path / "checkpoint")
    assert all(map(torch.equal, answers(again, canvas), answers(model, canvas)))
    assert torch.equal(again.detach().get_input_embeddings().weight[OLD:], rows)
    ours = PrismModel.from_pretrained(tmp_path / "checkpoint")
    kept = ours.get_input_embeddings().weight[OLD:].clone()
    assert torch.equal(ours.detach().get_input_embeddings().weight[OLD:], kept)


def test_random_rows_are_never_taken_for_the_trained_ones(bert, tmp_path):
    model = attach_quality_head(resized(bert))
    model.save_pretrained(tmp_path / "head")
    with pytest.raises(StoredStateError, match=r"resized from 32 tokens to 35; call `backbone.resize_token_embeddings\(35\)`"):
        PrismModel.from_pretrained(tmp_path / "head", load_backbone(bert))
    # one that was trained on a checkpoint with these tokens, and no rows of its own
    resized(bert).save_pretrained(tmp_path / "whole")
    attach_quality_head(load_backbone(tmp_path / "whole")).save_pretrained(tmp_path / "plain")
    assert "new_tokens.safetensors" not in names(tmp_path / "plain")
    with pytest.raises(StoredStateError, match=r"`backbone_resized_from` must be 32 to fit this model, found None: rows of"):
        PrismModel.from_pretrained(tmp_path / "plain", resized(bert))
    (tmp_path / "head" / "new_tokens.safetensors").unlink()
    with pytest.raises(StoredStateError, match=r"new_tokens.safetensors is missing"):
        PrismModel.from_pretrained(tmp_path / "head")


def test_a_whole_backbone_needs_no_rows_beside_it(bert, tmp_path, canvas):
    whole = trained(attach_quality_head(resized(bert), PrismConfig(train_backbone=True)))
    whole.save_pretrained(tmp_path / "whole")
    merged = trained(attach_quality_head(resized(bert), lora=LoraConfig(r=2)))
    merged.save_pretrained(tmp_path / "merged")
    with pytest.raises(ConfigurationError, match="has no rows for tokens that this one got since; export with `merge=True`"):
        export_sampler(RemaskingSampler.from_preset("random", merged, num_steps=2), tmp_path / "out", merge=False)
    merged.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")  # over a folder with rows
    for name, model in (("whole", whole), ("merged", merged)):
        assert "new_tokens.safetensors" not in names(tmp_path / name)
        assert read_config(tmp_path / name)[0].backbone_resized_from is None
        assert all(map(torch.equal, answers(PrismModel.from_pretrained(tmp_path / name), canvas), answers(model, canvas)))
    load_weights(whole, tmp_path / "whole")
