"""Models that change themselves when called say of a row what they say of it by themselves, and come back whole."""

import copy

import pytest
import torch
import transformers
from peft import LoraConfig
from whole_state import differences, whole_state

import prism_plugin as prism
from prism_plugin.backbones import infer_spec
from prism_plugin.modeling.probing import probe_model
from prism_plugin.testing import tiny_backbone

MASK = prism.PrismConfig(mask_token_id=31)
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "sep_token_id": 1, "initializer_range": 0.25, "is_causal": False,
}  # fmt: skip
LENGTHS = (64, 33, 9, 21, 5, 33)
ROWS = [torch.arange(length)[None] % 28 + 2 for length in LENGTHS]


def big_bird(**changes):
    """Sparse for rows of more than 28 tokens."""
    sizes = {**SIZES, "block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 64, "hidden_act": "gelu", **changes}
    return transformers.BigBirdForMaskedLM(transformers.BigBirdConfig(**sizes)).eval()


def llama(**rope):
    config = transformers.LlamaConfig(**SIZES, max_position_embeddings=16, rope_parameters={"rope_theta": 1e4, **rope})
    return transformers.LlamaForCausalLM(config).eval()


class Remembers(transformers.BertForMaskedLM):
    """Keeps a table for the last length, counts its calls on a new attribute, and writes into its config."""

    def forward(self, input_ids, attention_mask=None):
        self.config.is_decoder, self.bert.last_table = False, torch.ones(input_ids.shape[1])
        self.config.longest = max(input_ids.shape[1], getattr(self.config, "longest", 0))
        return super().forward(input_ids, attention_mask=attention_mask)


MODELS = {
    "BigBird": big_bird,
    "dynamic RoPE": lambda: llama(rope_type="dynamic", factor=2.0),
    "LongRoPE": lambda: llama(
        rope_type="longrope", factor=2.0, original_max_position_embeddings=8, short_factor=[0.9, 1.5, 1.2, 3.0],
        long_factor=[1.5, 3.0, 2.0, 5.0],
    ),
    "remembers": lambda: Remembers(tiny_backbone(hidden_size=16).config).eval(),
}  # fmt: skip
MODELS_OF_OTHERS = pytest.mark.filterwarnings("ignore:No BackboneSpec is registered")


def alone(backbone, row):
    """What a model says that has seen no other row."""
    return copy.deepcopy(backbone)(input_ids=row).logits[0]


def attached(model, row):
    return model(row, logits_at=torch.ones_like(row, dtype=torch.bool)).logits


@MODELS_OF_OTHERS
@pytest.mark.parametrize(("probe", "lora"), [(True, LoraConfig(r=2)), (False, None)], ids=["probed, lora", "neither"])
@pytest.mark.parametrize("name", MODELS)
def test_attached_and_detached_it_is_what_it_was(name, probe, lora):
    backbone = MODELS[name]()
    before, expected = whole_state(backbone), [alone(backbone, row) for row in ROWS]
    model = prism.attach_quality_head(backbone, MASK, lora=lora, probe=probe)
    for row, logits in zip(ROWS, expected, strict=True):
        torch.testing.assert_close(attached(model, row), logits, atol=1e-5, rtol=1e-5)
    model.score(ROWS[2])
    prism.RemaskingSampler(model, num_steps=2).sample(ROWS[4], max_new_tokens=30)
    model.train()(ROWS[3]).quality_logits.sum().backward()
    model.zero_grad()
    probe_model(model)
    model(ROWS[2])
    assert differences(before, whole_state(model.detach())) == []
    for row, logits in zip(ROWS, expected, strict=True):
        assert torch.equal(alone(backbone, row), logits)


def test_looking_draws_no_random_number():
    backbone = big_bird()  # its full attention is made anew, at random, before it gets the weights
    state = torch.get_rng_state()
    infer_spec(backbone)
    assert torch.equal(torch.get_rng_state(), state)


@MODELS_OF_OTHERS
def test_layers_are_recomputed_as_they_were_called():
    def gradients(checkpointing):
        torch.manual_seed(1)
        backbone = big_bird(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = prism.attach_quality_head(backbone, MASK, lora=LoraConfig(r=2, init_lora_weights=False)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        for row in (ROWS[0], ROWS[2], ROWS[0]):
            attached(model, row).logsumexp(-1).sum().backward()
        return [parameter.grad for parameter in model.backbone.parameters() if parameter.requires_grad]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@MODELS_OF_OTHERS
def test_copies_modes_and_merging_while_changed():
    backbone = big_bird()
    expected = alone(backbone, ROWS[0])
    model = prism.attach_quality_head(backbone, MASK, lora=LoraConfig(r=2))
    model(ROWS[2])
    twin = copy.deepcopy(model)
    torch.testing.assert_close(attached(twin, ROWS[0]), expected)
    twin(ROWS[2])
    twin.train()
    twin(ROWS[0])
    assert all(module.training for module in twin.modules())
    assert not any(module.training for module in model.modules())
    model.merge_and_unload()
    assert not any("lora" in name for name, _ in model.named_modules())
    torch.testing.assert_close(attached(model, ROWS[0]), expected)
