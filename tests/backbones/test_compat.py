"""Each patch for code of transformers 4: what it mends, and that it is still needed. A test that fails because the code now
runs without its patch says that the patch can go."""

import copy
import importlib.util
import sys

import pytest
import torch
from remote_families import STANDIN_FAMILIES
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import import_utils

from prism_plugin.backbones import compat, load_backbone
from prism_plugin.errors import BackboneError
from prism_plugin.testing import tiny_backbone

IDS = torch.arange(2, 16).view(2, 7)
without_flash_attn = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is not None, reason="the stand-in is for machines without flash-attn"
)


def saved(family, folder, **changes):
    return STANDIN_FAMILIES[family].save(folder, **changes)


def load_plainly(folder, auto_class=AutoModel):
    """As a user of transformers would, with classes that nobody has patched yet."""
    for path in folder.glob("modeling_*.py"):
        path.write_text(path.read_text(encoding="utf-8") + f"\n# {folder}\n", encoding="utf-8")
    return auto_class.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture
def no_lucky_memory():
    """Memory that nobody wrote to reads as NaN, and not as what stood there before."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def test_nothing_of_transformers_stays_changed(tmp_path):
    before = dict(ROPE_INIT_FUNCTIONS), set(vars(import_utils))
    saved("dream", tmp_path)
    load_backbone(tmp_path, trust_remote_code=True)
    assert (dict(ROPE_INIT_FUNCTIONS), set(vars(import_utils))) == before
    assert "flash_attn" not in sys.modules


def test_what_is_there_already_is_left_alone(monkeypatch):
    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "default", "theirs")
    with compat.transformers_4_names():
        assert ROPE_INIT_FUNCTIONS["default"] == "theirs"
    assert ROPE_INIT_FUNCTIONS["default"] == "theirs"


def test_post_init_is_called_for_a_class_that_forgets_it(tmp_path):
    saved("llada", tmp_path)
    with pytest.raises(AttributeError, match="all_tied_weights_keys"):
        load_plainly(tmp_path)
    assert load_backbone(tmp_path, trust_remote_code=True).all_tied_weights_keys == {}


def test_tie_weights_takes_what_transformers_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "_takes_tying_arguments", lambda model_class: True)
    folder = tmp_path / "with_old_signature"  # classes go by folder name, so this one stays unmended
    with pytest.raises(TypeError, match=r"tie_weights\(\) got an unexpected keyword argument"):
        saved("llada", folder)


def test_the_default_rope_is_found(tmp_path):
    saved("dream", tmp_path)
    with pytest.raises(KeyError, match="default"):
        load_plainly(tmp_path)


def test_rope_frequencies_are_computed_again(tmp_path, monkeypatch, no_lucky_memory):
    built = saved("dream", tmp_path)
    loaded = load_backbone(tmp_path, trust_remote_code=True)
    assert torch.equal(loaded.model.rotary_emb.inv_freq, built.model.rotary_emb.inv_freq)
    assert torch.equal(loaded.model.rotary_emb.original_inv_freq, built.model.rotary_emb.inv_freq)
    assert torch.equal(loaded(input_ids=IDS).logits, built(input_ids=IDS).logits)
    monkeypatch.setattr(compat, "_recompute_frequencies", lambda module, config: None)
    with pytest.raises(BackboneError, match=r"rotary table `model.rotary_emb.inv_freq` of DreamModel .* starts nan"):
        load_backbone(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize(("head_dim", "factor"), [(None, None), (8, None), (8, 0.5)])
def test_default_rope_is_the_published_formula(head_dim, factor):
    config = AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=2)
    config.head_dim, config.partial_rotary_factor, config.rope_theta = head_dim, factor, 500.0
    inv_freq, scaling = compat.default_rope(config)
    width = int((head_dim or 16) * (factor or 1.0))
    torch.testing.assert_close(inv_freq, torch.tensor([500.0 ** (-2 * i / width) for i in range(width // 2)]))
    assert scaling == 1.0


def test_lists_of_tied_weights_become_mappings(tmp_path):
    saved("dream", tmp_path)
    model = load_backbone(tmp_path, trust_remote_code=True)
    assert model._tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
    assert model.all_tied_weights_keys == {}
    model.save_pretrained(tmp_path / "again")
    again = load_backbone(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    model._tied_weights_keys = ["lm_head.weight"]
    with pytest.raises(AttributeError, match="'list' object has no attribute 'keys'"):
        model.save_pretrained(tmp_path / "not")


def test_the_model_can_be_called_without_use_cache(tmp_path):
    saved("llada", tmp_path)
    loaded = load_backbone(tmp_path, trust_remote_code=True)
    assert loaded(input_ids=IDS).logits.shape == (2, 7, 32)
    del loaded.config.use_cache
    with pytest.raises(AttributeError, match="use_cache"):
        loaded(input_ids=IDS)


def test_no_parameter_is_initialised_before_it_is_read(tmp_path, monkeypatch):
    drawn = []
    for name in ("kaiming_uniform_", "normal_", "uniform_"):
        original = getattr(nn.init, name)

        def count(tensor, *args, original=original, **kwargs):
            drawn.append(0 if tensor.is_meta else tensor.numel())
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(nn.init, name, count)
    built = saved("llada", tmp_path)
    assert sum(drawn) > 0.5 * built.num_parameters(), "the stand-in must draw its parameters when built without care"
    drawn.clear()
    loaded = load_backbone(tmp_path, trust_remote_code=True)
    assert sum(drawn) == 0
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), built.parameters(), strict=True))
    assert torch.equal(loaded(input_ids=IDS).logits, built(input_ids=IDS, use_cache=False).logits)


def test_init_device_is_given_back(tmp_path):
    saved("llada", tmp_path)
    loaded = load_backbone(tmp_path, trust_remote_code=True)
    config_class = type(loaded.model.config)
    assert config_class.init_device is None
    assert config_class(init_device="meta").init_device == "meta"


@pytest.mark.parametrize(("every_n_layers", "recomputed"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_llada_checkpoints_by_the_standard_flag(tmp_path, use_reentrant, every_n_layers, recomputed):
    saved("llada", tmp_path)
    model = load_backbone(tmp_path, trust_remote_code=True).train()
    calls = []
    for block in model.model.transformer["blocks"]:
        block.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients():
        calls.clear()
        model.zero_grad()
        model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    assert len(calls) == 2
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant}, every_n_layers=every_n_layers)
    assert model.is_activation_checkpointing
    torch.testing.assert_close(gradients(), expected)
    assert len(calls) == 2 + recomputed
    assert len(gradients()) == len(expected)
    twin = copy.deepcopy(model)
    twin(input_ids=IDS)
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    gradients()
    assert len(calls) == 2


def test_llada_checkpoints_one_layer_in_four_at_most(tmp_path):
    saved("llada", tmp_path)
    model = load_backbone(tmp_path, trust_remote_code=True)
    with pytest.raises(BackboneError, match=r"one in 2, 3 or 4, got `every_n_layers=5`"):
        model.activation_checkpointing_enable(every_n_layers=5)


def test_a_tied_llada_gets_an_lm_head_of_its_own(tmp_path):
    built = saved("llada", tmp_path, weight_tying=True)
    loaded = load_backbone(tmp_path, trust_remote_code=True)
    head, embeddings = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert isinstance(head, nn.Linear)
    assert torch.equal(head.weight, embeddings.weight)
    assert head.weight.data_ptr() != embeddings.weight.data_ptr()
    assert torch.equal(loaded(input_ids=IDS).logits, built(input_ids=IDS, use_cache=False).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = load_backbone(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(input_ids=IDS).logits, loaded(input_ids=IDS).logits)


def test_an_import_that_is_gone_is_found(tmp_path):
    saved("llada2_moe", tmp_path)
    with pytest.raises(ImportError, match="is_torch_fx_available"):
        load_plainly(tmp_path, AutoModelForCausalLM)


@without_flash_attn
def test_flash_attn_is_stood_in_for(tmp_path):
    built = saved("mdlm", tmp_path)
    with pytest.raises(ImportError, match="flash_attn"):
        load_plainly(tmp_path, AutoModelForMaskedLM)
    folder = tmp_path / "again"
    saved("mdlm", folder)
    loaded = load_backbone(folder, trust_remote_code=True)
    times = torch.zeros(2)
    expected = built(input_ids=IDS, timesteps=times, return_dict=True).logits
    assert torch.equal(loaded(input_ids=IDS, timesteps=times, return_dict=True).logits, expected)


@without_flash_attn
def test_the_stand_ins_for_flash_attn_are_the_published_functions():
    batch, length, heads, width = 2, 5, 3, 4
    qkv = torch.randn(batch, length, 3, heads, width)
    angles = torch.outer(torch.arange(length).float(), torch.tensor([1.0, 0.1]))
    with compat.transformers_4_names():
        import flash_attn
        import flash_attn.layers.rotary

        rotated = flash_attn.layers.rotary.apply_rotary_emb_qkv_(qkv, angles.cos(), angles.sin())
        bounds = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32)
        attend = flash_attn.flash_attn_interface.flash_attn_varlen_qkvpacked_func
        attended = attend(qkv.flatten(0, 1), bounds, length, 0.0, causal=False)
    for row, position, part, head in torch.cartesian_prod(*map(torch.arange, (batch, length, 3, heads))).tolist():
        vector = qkv[row, position, part, head]
        turned = vector.clone()
        for pair in range(width // 2 if part < 2 else 0):  # values are not rotated
            cos, sin = angles[position, pair].cos(), angles[position, pair].sin()
            turned[pair] = vector[pair] * cos - vector[pair + 2] * sin
            turned[pair + 2] = vector[pair] * sin + vector[pair + 2] * cos
        torch.testing.assert_close(rotated[row, position, part, head], turned)
    for row, head in torch.cartesian_prod(torch.arange(batch), torch.arange(heads)).tolist():
        query, key, value = qkv[row, :, :, head].unbind(1)
        expected = (query @ key.T / width**0.5).softmax(-1) @ value
        torch.testing.assert_close(attended.view(batch, length, heads, width)[row, :, head], expected)


def test_tied_weights_of_a_list_are_tied(tmp_path):
    built = saved("illada", tmp_path)
    loaded = load_backbone(tmp_path, trust_remote_code=True)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(input_ids=IDS).logits, built(input_ids=IDS).logits)
    loaded.save_pretrained(tmp_path / "tied")
    again = load_backbone(tmp_path / "tied", trust_remote_code=True)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_frequencies_of_a_formula_of_its_own_are_computed_again(tmp_path, no_lucky_memory):
    built = saved("illada", tmp_path, rope_theta=500.0)
    loaded = load_backbone(tmp_path, trust_remote_code=True)
    assert torch.equal(loaded.model.rotary_emb.inv_freq, built.model.rotary_emb.inv_freq)


class ScaledByItself(nn.Module):
    """Computes its table in its constructor, scaled, without a function that others could call."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", 1e4 ** -(torch.arange(4) / 4) / config.rope_scaling_of_mine, persistent=False)


def test_frequencies_that_a_constructor_scales_are_computed_again():
    backbone = tiny_backbone("llama")
    backbone.config.rope_scaling_of_mine = 8.0
    backbone.model.rotary_emb = ScaledByItself(backbone.config)
    expected = backbone.model.rotary_emb.inv_freq.clone()
    backbone.model.rotary_emb.inv_freq.fill_(float("nan"))
    compat.finish_loading(backbone)
    assert torch.equal(backbone.model.rotary_emb.inv_freq, expected)


def test_a_from_pretrained_of_its_own_is_gone_round(tmp_path):
    saved("dream", tmp_path)
    with compat.transformers_4_names(), pytest.raises(AttributeError, match="'tuple' object has no attribute"):
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True, output_loading_info=True)
    assert load_backbone(tmp_path, trust_remote_code=True).config.model_type == "Dream"
