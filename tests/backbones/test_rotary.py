"""Rotary tables of every type that transformers has: healthy ones pass, ruined ones are refused."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ModernBertConfig, ModernBertForMaskedLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from prism_plugin.backbones.rotary import check_rotary_tables
from prism_plugin.testing import tiny_backbone

SIZES = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1,
    "max_position_embeddings": 16,
}  # fmt: skip
TYPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 8},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8},
    "longrope": {
        "factor": 2.0, "original_max_position_embeddings": 8, "short_factor": [0.9, 1.5, 1.2, 3.0, 1.0, 2.0, 5.0, 4.0],
        "long_factor": [1.5, 3.0, 2.0, 5.0, 1.0, 7.0, 8.0, 9.0],
    },
    "proportional": {"partial_rotary_factor": 0.5},
}  # fmt: skip
RUINED = {
    "zeros": torch.zeros_like,
    "not numbers": lambda table: torch.full_like(table, float("nan")),
    "memory as it was found": lambda table: torch.tensor([1.4e25, 4.6e-41, -3.9e5, 0.0]).repeat(2),
    "another base": lambda table: table**0.8,
    "another order": lambda table: table.flip(-1),
    "one entry": lambda table: table.clone().index_fill_(0, torch.tensor(2), 0.5),
}


def parameters_of(rope_type):
    return {"rope_type": rope_type, "rope_theta": 1e4, **TYPES[rope_type]}


def llama(rope_type):
    return LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=parameters_of(rope_type))).eval()


def test_every_type_of_transformers_is_here():
    assert set(TYPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("rope_type", TYPES)
def test_healthy_tables_pass_whatever_rows_were_seen(rope_type):
    backbone = llama(rope_type)
    for length in (4, 30, 12, 5):
        assert check_rotary_tables(backbone).figure < 1e-5
        backbone(input_ids=torch.full((1, length), 3))
    for dtype in (torch.bfloat16, torch.float16):
        assert check_rotary_tables(backbone.to(dtype)).ok


@pytest.mark.parametrize("name", ["inv_freq", "original_inv_freq"])
@pytest.mark.parametrize("rope_type", TYPES)
def test_ruined_tables_are_refused(rope_type, name):
    backbone = llama(rope_type)
    table = getattr(backbone.model.rotary_emb, name)
    healthy = table.clone()
    for ruin in RUINED.values():
        table.copy_(ruin(healthy))
        check = check_rotary_tables(backbone)
        assert check.ok is False
        assert f"`model.rotary_emb.{name}` of LlamaForCausalLM must be the one that its config gives" in check.detail
    table.copy_(healthy)
    assert check_rotary_tables(backbone).ok


@pytest.mark.parametrize("rope_type", TYPES)
def test_a_type_for_each_kind_of_layer(rope_type):
    rope = {"full_attention": parameters_of(rope_type), "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
    backbone = ModernBertForMaskedLM(ModernBertConfig(**{**SIZES, "num_hidden_layers": 3}, rope_parameters=rope)).eval()
    for length in (5, 30):
        backbone(input_ids=torch.full((1, length), 3))
        check = check_rotary_tables(backbone)
        assert check.ok, check.detail
    table = backbone.model.rotary_emb.full_attention_inv_freq
    table.copy_(backbone.model.rotary_emb.sliding_attention_inv_freq)
    assert check_rotary_tables(backbone).ok is False


def test_the_sentence_says_what_should_be_there():
    backbone = llama("proportional")
    backbone.model.rotary_emb.inv_freq.zero_()
    assert check_rotary_tables(backbone).detail == (
        "The rotary table `model.rotary_emb.inv_freq` of LlamaForCausalLM must be the one that its config gives, which starts "
        "1, 0.316, 0.1, but it starts 0, 0, 0; it was not initialised, was damaged, or the config was changed afterwards, so "
        "load the model with `load_backbone`."
    )


def test_checking_changes_no_config():
    backbone = llama("yarn")
    before = dict(backbone.config.rope_parameters), vars(backbone.config).copy()
    check_rotary_tables(backbone)
    assert (backbone.config.rope_parameters, vars(backbone.config)) == before


class WithoutConfig(nn.Module):
    """As in older remote code."""

    def __init__(self, table):
        super().__init__()
        self.register_buffer("inv_freq", table, persistent=False)


class WithFunction(WithoutConfig):
    """As in the remote code that was written for transformers 4: another signature, and the function at hand."""

    def __init__(self, dim, config):
        super().__init__(ROPE_INIT_FUNCTIONS["yarn"](config)[0])
        self.config, self.rope_init_fn = config, ROPE_INIT_FUNCTIONS["yarn"]


def test_modules_that_cannot_be_built_again():
    healthy = llama("longrope")
    plain = 1e6 ** -(torch.arange(8) / 8)
    for table in (plain, plain / 4, healthy.model.rotary_emb.inv_freq):
        healthy.model.rotary_emb = WithoutConfig(table.clone())
        assert check_rotary_tables(healthy).ok
        for ruin in RUINED.values():
            if ruin is not RUINED["another base"]:  # no config says which it is
                healthy.model.rotary_emb.inv_freq.copy_(ruin(table))
                assert check_rotary_tables(healthy).ok is False
    backbone = llama("yarn")
    backbone.model.rotary_emb = WithFunction(16, backbone.config)
    assert check_rotary_tables(backbone).figure == 0.0
    for ruin in RUINED.values():
        backbone.model.rotary_emb = WithFunction(16, backbone.config)
        table = backbone.model.rotary_emb.inv_freq
        table.copy_(ruin(table))
        assert check_rotary_tables(backbone).ok is False


def test_a_model_without_tables_passes():
    check = check_rotary_tables(tiny_backbone())
    assert (check.ok, check.detail) == (True, "the model has no rotary tables")
