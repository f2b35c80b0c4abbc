"""Soft tokens: mixtures of embeddings in place of a token's own, in the families that take them."""

import pytest
import torch
from moved_weights import trained
from peft import LoraConfig

from prism_plugin.core.soft import SoftTokens, soft_tokens
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.modeling.soft_inputs import require_soft_inputs
from prism_plugin.testing import tiny_backbone

MASK = 31


def build(family="bert", lora=None):
    return trained(attach_quality_head(tiny_backbone(family), PrismConfig(mask_token_id=MASK), lora=lora)).eval()


def test_a_mixture_is_what_it_says():
    rows, mix = torch.randn(5, 12) * 3, torch.tensor([0.0, 0.5, 1.0, 0.8, 0.8])
    soft = soft_tokens(rows, torch.arange(5), mask_token_id=11, top_k=2, mix=mix)
    for row in range(5):
        logits = rows[row].tolist()[:11]
        total = sum(2.718281828459045**one for one in logits)
        p = [2.718281828459045**one / total for one in logits]
        entropy = -sum(one * torch.tensor(one).log().item() for one in p)
        a = mix[row].item() * (1 - entropy / torch.tensor(12.0).log().item())
        first, second = sorted(range(11), key=lambda token: -p[token])[:2]
        assert soft.ids[row].tolist() == [11, first, second]
        expected = [1 - a, a * p[first] / (p[first] + p[second]), a * p[second] / (p[first] + p[second])]
        assert soft.weights[row].tolist() == pytest.approx(expected, abs=1e-5)
    assert soft.weights.sum(-1).tolist() == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_look_sees_the_mixture_of_embeddings_wherever_the_row_is_padded(family):
    model, table = build(family, LoraConfig(r=2)), None
    ids = torch.tensor([[5, MASK, 7, 8], [9, 10, MASK, 3]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    soft = SoftTokens(torch.tensor([1, 6]), torch.tensor([[MASK, 4], [MASK, 6]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    found = model(ids, mask, logits_at=soft.index, soft=soft)
    table = model.get_input_embeddings().weight
    embeddings = table[ids].clone()
    embeddings[0, 1] = 0.25 * table[MASK] + 0.75 * table[4]
    embeddings[1, 2] = 0.5 * table[MASK] + 0.5 * table[6]
    expected = model.plain_backbone(inputs_embeds=embeddings, attention_mask=mask).logits
    torch.testing.assert_close(found.logits, expected.flatten(0, 1)[soft.index])
    left = SoftTokens(torch.tensor([1, 7]), soft.ids, soft.weights)
    turned, present = torch.tensor([[5, MASK, 7, 8], [3, 9, 10, MASK]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    again = model(turned, present, logits_at=left.index, soft=left)
    torch.testing.assert_close(again.logits, found.logits)
    torch.testing.assert_close(again.quality_logits[1, 1:], found.quality_logits[1, :3])
    found.logits.sum().backward()
    assert any(one.grad.abs().sum() > 0 for name, one in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "qwen3", "modernbert"])
def test_families_that_take_soft_tokens(family):
    require_soft_inputs(build(family))


def test_families_that_do_not_are_refused():
    esm = build("esm")
    esm.plain_backbone.esm.embeddings.token_dropout = True  # scales by the share of mask ids, as released ones do
    with pytest.raises(ConfigurationError, match=r"logits of EsmForMaskedLM differ by .* does something with ids besides"):
        require_soft_inputs(esm)
    model = build()
    model.plain_backbone.forward = lambda input_ids, attention_mask=None: None
    with pytest.raises(ConfigurationError, match=r"whose forward takes `inputs_embeds`, but that of BertForMaskedLM does not"):
        require_soft_inputs(model)
