"""The head starts as a calibrated constant, and stays in float32 whatever happens around it."""

import pytest
import torch

from prism_plugin.errors import ConfigurationError, UnknownKeyError
from prism_plugin.modeling import PrismConfig, QualityHead
from prism_plugin.modeling.heads import HEADS


@pytest.mark.parametrize("history", [(), ("age",)])
@pytest.mark.parametrize("kind", HEADS)
def test_an_untrained_head_says_the_base_rate(kind, history):
    taps = [torch.randn(2, 5, 8)] if kind == "multi_tap" else []
    sizes = {"num_taps": 1} if taps else {}
    logit = PrismConfig(base_rate=0.7).base_rate_logit
    head = QualityHead(8, kind=kind, sizes=sizes, history=history, initial_logit=logit)
    torch.testing.assert_close(head(torch.randn(2, 5, 8), taps=taps).sigmoid(), torch.full((2, 5), 0.7))


def test_it_is_scaled_after_its_last_layer():
    config = PrismConfig(head="linear", backbone_hidden_size=8, quality_temperature=2.5, quality_bias=-0.75)
    head, hidden = QualityHead.from_config(config), torch.randn(2, 5, 8)
    torch.nn.init.normal_(head.layers[-1].weight)
    torch.testing.assert_close(head(hidden), head.layers(hidden).squeeze(-1) / 2.5 - 0.75)


def test_layers():
    assert [type(layer).__name__ for layer in QualityHead(8).layers] == ["LayerNorm", "Linear", "GELU", "Linear"]
    assert [type(layer).__name__ for layer in QualityHead(8, kind="linear").layers] == ["LayerNorm", "Linear"]
    assert QualityHead(8, sizes={"inner_size": 3}).layers[-1].in_features == 3


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
        ({"head": "conv"}, "`head` must be one of mlp, linear, transformer, multi_tap, got 'conv'"),
        ({"head": "linear", "head_hidden_size": 4}, "A linear head has no `head_hidden_size`, but it is 4; leave it out"),
        ({"head_hidden_size": 0}, "`head_hidden_size` of PrismConfig must be an integer of at least 1, found 0"),
        ({"head_blocks": 2}, "A mlp head has no `head_blocks`, but it is 2; leave it out, or choose another `head`"),
        ({"head": "transformer", "head_blocks": 0}, "`head_blocks` of PrismConfig must be an integer of at least 1, found 0"),
        ({"head": "transformer", "head_taps": (0,)}, r"A transformer head has no `head_taps`, but it is \(0,\)"),
        ({"head": "multi_tap"}, r"A multi_tap head reads layers, so `head_taps` must name some, such as \(0, -1\), found None"),
        ({"head": "multi_tap", "head_taps": (1, 1)}, r"`head_taps` must name each layer once, found \(1, 1\)"),
        (
            {"head_history": ("age", "mood")},
            r"`head_history` must list some of age, commit_confidence, times_remasked, each once, found \('age', 'mood'\)",
        ),
        ({"head_history": "age"}, r"`head_history` must list some of .*, each once, found 'age'"),
        ({"head_history": 3}, r"`head_history` must list some of .*, each once, found 3"),
        ({"head_history": ("age", "age")}, r"each once, found \('age', 'age'\)"),
        ({"head": "multi_tap", "head_taps": 3}, "`head_taps` must list integers, the numbers of layers, found 3"),
        (
            {"head": "multi_tap", "head_taps": (True,)},
            r"`head_taps` must list integers, the numbers of layers, found \(True,\)",
        ),
        ({"head": "multi_tap", "head_taps": (1.0,)}, r"`head_taps` must list integers, the numbers of layers, found \(1.0,\)"),
        ({"head": "multi_tap", "head_taps": ()}, r"`head_taps` must name some, such as \(0, -1\), found \(\)"),
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
    assert PrismConfig(head_history=None) == PrismConfig()
    assert PrismConfig(head="multi_tap", head_taps=[0, -1]).head_taps == (0, -1)
    with pytest.raises(UnknownKeyError, match=r"PrismConfig: nothing reads 'heads' .*; known: backbone_hidden_size"):
        PrismConfig.from_dict({"heads": "mlp"})
