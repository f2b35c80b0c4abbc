"""Settings of attaching may be mappings, and what is neither is one sentence that leaves the backbone as it was."""

import pytest
from whole_state import differences, whole_state

from prism_plugin.errors import ConfigurationError, UnknownKeyError
from prism_plugin.modeling import attach_quality_head
from prism_plugin.testing import tiny_backbone


def test_mappings_will_do_for_configs():
    model = attach_quality_head(tiny_backbone(), {"head": "linear", "mask_token_id": 31}, lora={"r": 4, "lora_alpha": 8})
    assert model.prism_config.head == "linear"
    (adapter,) = model.backbone.peft_config.values()
    assert (adapter.r, adapter.lora_alpha) == (4, 8)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"config": "mlp"}, ConfigurationError, "`config` must be a PrismConfig or a mapping of its settings, .* found str"),
        ({"config": {"haed": "mlp"}}, UnknownKeyError, "PrismConfig: nothing reads 'haed' .did you mean 'head'"),
        (
            {"lora": 4},
            ConfigurationError,
            "`lora` must be a config of PEFT, or a mapping of LoraConfig's .* found int",
        ),
        ({"lora": {"rank": 4}}, UnknownKeyError, "lora: nothing reads 'rank'"),
        ({"lora": {"peft_type": "IA3"}}, UnknownKeyError, "lora: nothing reads 'peft_type'"),
        ({"lora": {"use_dora": True, "layer_replication": 3}}, ConfigurationError, "`lora`"),
        ({"lora": {"r": "4"}}, ConfigurationError, "`lora`"),
    ],
)
def test_what_is_no_setting_is_refused(given, error, words):
    backbone = tiny_backbone()
    before = whole_state(backbone)
    with pytest.raises(error, match=words):
        attach_quality_head(backbone, **{"config": {"mask_token_id": 31}, **given})
    assert not differences(before, whole_state(backbone))
