"""What single families of transformers have of their own: windows, words for attention, heads that are not there."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, DebertaV2ForMaskedLM, ElectraConfig, ElectraForPreTraining

from prism_plugin.backbones import get_backbone_spec, is_registered, load_backbone
from prism_plugin.backbones.call import call_arguments
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone

MASK = PrismConfig(mask_token_id=31)


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "gemma3_text"])
def test_a_window_reaches_as_far_to_the_right_as_to_the_left(family):
    backbone = tiny_backbone(family, num_hidden_layers=1)
    model, window = attach_quality_head(backbone, MASK), backbone.config.sliding_window
    ids, present = torch.arange(2, 18)[None].repeat(2, 1), torch.ones(2, 16, dtype=torch.bool)
    ids[1, 8], present[:, -1] = 30, False
    one, other = model(ids, present, output_hidden_states=True).hidden_states
    moved = (one - other).abs().amax(-1) > 1e-6
    assert window == 4
    assert moved.nonzero().flatten().tolist() == list(range(8 - window, 8 + window + 1))


def with_gemmas_own_word(family):
    config = tiny_backbone(family).config
    del config.is_causal
    config.use_bidirectional_attention = True
    return AutoModelForCausalLM.from_config(config).eval()


def test_gemma_3_may_say_in_its_own_word_that_it_attends_to_both_sides():
    attach_quality_head(with_gemmas_own_word("gemma3_text"), MASK)


def test_gemma_2_has_that_word_and_stays_causal():
    with pytest.raises(BackboneError, match=r"in Gemma2ForCausalLM the last token does not reach .*config.is_causal = False"):
        attach_quality_head(with_gemmas_own_word("gemma2"), MASK)


def test_a_discriminator_has_no_lm_head(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ElectraForPreTraining(ElectraConfig(vocab_size=32, embedding_size=8, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"every weight of ElectraForMaskedLM, but 5 are missing.*saved with its LM head"):
        load_backbone(tmp_path)


def test_a_deberta_with_the_released_head_says_so_in_its_config(tmp_path):
    tiny_backbone("deberta-v2-lm-predictions").save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert isinstance(backbone, DebertaV2ForMaskedLM)
    assert attach_quality_head(backbone, MASK).spec.model_type == "deberta-v2-lm-predictions"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "legacy"}))
    with pytest.raises(BackboneError, match=r"every weight of DebertaV2ForMaskedLM, but 6 are missing, `cls.predictions"):
        load_backbone(tmp_path)


def saved_as_released(folder, **changes):
    """A tiny SDAR as its repository has it: its own model type, and code that is not to run."""
    torch.manual_seed(0)
    tiny_backbone("sdar").save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in ("masked_diffusion_family", "is_causal")}
    code = {"AutoConfig": "gone.SDARConfig", "AutoModelForCausalLM": "gone.SDARForCausalLM"}
    config |= {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "auto_map": code, **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_family_that_loads_as_another_is_itself_when_saved_and_loaded(tmp_path, trust_remote_code):
    released = load_backbone(saved_as_released(tmp_path / "released", block_size=8), trust_remote_code=trust_remote_code)
    assert type(released).__name__ == "Qwen3ForCausalLM"
    released.save_pretrained(tmp_path / "saved")
    saved = load_backbone(tmp_path / "saved")
    ids = torch.arange(3, 23)[None]
    for backbone in (released, saved):
        spec = get_backbone_spec(backbone)
        assert (spec.model_type, spec.attention_block_length, is_registered(spec)) == ("sdar", 8, True)
        arguments = call_arguments(spec, ids, None)
        assert torch.equal(backbone(**arguments).logits, released(**arguments).logits)


@pytest.mark.parametrize("length", [None, 0, "4", True])
def test_a_block_length_that_a_config_does_not_say_is_one_sentence(tmp_path, length):
    saved_as_released(tmp_path, block_size=length)
    words = rf"config of a 'sdar' model must say by `block_size` how many positions .*, at least 1, found {length!r}; take"
    with pytest.raises(BackboneError, match=words):
        load_backbone(tmp_path)


def test_weights_of_another_family_under_the_same_model_type_are_one_sentence(tmp_path):
    saved_as_released(tmp_path)
    tiny_backbone("gpt2").save_pretrained(tmp_path / "gpt2")
    shutil.copy(tmp_path / "gpt2" / "model.safetensors", tmp_path)
    with pytest.raises(BackboneError, match=r"must hold every weight of Qwen3ForCausalLM, but .* are missing"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("block_length", [3, 16])
def test_blocks_that_the_attention_does_not_know_are_refused(block_length):
    model = attach_quality_head(tiny_backbone("sdar"), MASK)
    with pytest.raises(ConfigurationError, match="`block_length` must divide 4, since sdar attends by blocks"):
        RemaskingSampler(model, num_steps=4, block_length=block_length)
