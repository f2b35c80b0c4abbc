"""The head starts as a calibrated constant, and stays in float32 whatever happens around it."""

import pytest
import torch

from prism_plugin.errors import ConfigurationError, UnknownKeyError
from prism_plugin.modeling import PrismConfig, QualityHead


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_an_untrained_head_says_the_base_rate(kind):
    head = QualityHead(8, kind=kind, initial_logit=PrismConfig(base_rate=0.7).base_rate_logit)
    torch.testing.assert_close(head(torch.randn(2, 5, 8)).sigmoid(), torch.full((2, 5), 0.7))


def test_it_is_scaled_after_its_last_layer():
    config = PrismConfig(head="linear", backbone_hidden_size=8, quality_temperature=2.5, quality_bias=-0.75)
    head, hidden = QualityHead.from_config(config), torch.randn(2, 5, 8)
    torch.nn.init.normal_(head.layers[-1].weight)
    torch.testing.assert_close(head(hidden), head.layers(hidden).squeeze(-1) / 2.5 - 0.75)


def test_layers():
    assert [type(layer).__name__ for layer in QualityHead(8).layers] == ["LayerNorm", "Linear", "GELU", "Linear"]
    assert [type(layer).__name__ for layer in QualityHead(8, kind="linear").layers] == ["LayerNorm", "Linear"]
    assert QualityHead(8, inner_size=3).layers[-1].in_features == 3


def test_same_generator_state_same_head():
    heads = []
    for _ in range(2):
        torch.manual_seed(3)
        heads.append(QualityHead(8).state_dict())
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


def test_always_float32():
    head = QualityHead(8)
    torch.nn.init.normal_(head.layers[-1].weight)
    hidden = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    expected = head(hidden.float())
    weights = head.layers[1].weight.clone()
    torch.nn.Sequential(head).to(torch.bfloat16).half()
    assert torch.equal(head.layers[1].weight, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quality = head(hidden)
    assert quality.dtype == torch.float32
    assert torch.equal(quality, expected)


def test_it_moves_between_devices():
    assert QualityHead(8).to("meta").layers[1].weight.is_meta


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "conv"}, "`head` must be one of mlp, linear, got 'conv'"),
        ({"head": "linear", "head_hidden_size": 4}, "A linear head has no hidden layer, but `head_hidden_size` is 4"),
        ({"head_hidden_size": 0}, "`head_hidden_size` of PrismConfig must be an integer of at least 1, found 0"),
        ({"base_rate": 1.0}, "`base_rate` of PrismConfig must be strictly between 0 and 1, found 1.0"),
        ({"base_rate": float("nan")}, "`base_rate` of PrismConfig must be strictly between 0 and 1, found nan"),
        ({"base_rate": "high"}, "`base_rate` of PrismConfig must be strictly between 0 and 1, found 'high'"),
        ({"head_hidden_size": "wide"}, "`head_hidden_size` of PrismConfig must be an integer of at least 1, found 'wide'"),
        ({"mask_token_id": "<mask>"}, "`mask_token_id` of PrismConfig must be an integer of at least 0, found '<mask>'"),
        ({"train_backbone": "no"}, "`train_backbone` must be True or False, found 'no'"),
        ({"quality_temperature": 0.0}, "`quality_temperature` of PrismConfig must be a number above 0, found 0.0"),
        ({"quality_bias": float("inf")}, "`quality_bias` of PrismConfig must be a finite number, found inf"),
    ],
)
def test_config_checks_itself(values, message):
    with pytest.raises(ConfigurationError, match=message):
        PrismConfig(**values)


def test_config_survives_a_dict_and_refuses_unknown_keys():
    config = PrismConfig(mask_token_id=3, head="linear", objective={"name": "prism"})
    assert PrismConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UnknownKeyError, match=r"PrismConfig: nothing reads 'heads' .*; known: backbone_hidden_size"):
        PrismConfig.from_dict({"heads": "mlp"})
