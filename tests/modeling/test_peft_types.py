"""Every type of adapter that PEFT has either works whole, from attaching to loading, or is refused when it is attached."""

import peft
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig

from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.persistence import load_weights
from prism_plugin.modeling.reopening import require_reopening, without_values
from prism_plugin.testing import tiny_backbone

MASK = PrismConfig(mask_token_id=31)
# What must be given, and what fits a width of 16 where a type's default does not.
SMALL = {
    "ADALORA": {"total_step": 9},
    "C3A": {"block_size": 8},
    "CPT": {"task_type": "CAUSAL_LM"},
    "FOURIERFT": {"n_frequency": 10, "scaling": 1.0},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4]},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 10},
}
TYPES = {getattr(one, "value", one): config for one, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
REFUSED = {
    "ADALORA", "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "POLY", "PREFIX_TUNING",
    "PROMPT_TUNING", "SHADOW", "XLORA",
}  # fmt: skip
QUICK = ("IA3", "LOHA", "VERA", "ADALORA", "PREFIX_TUNING")


def backbone(**settings):
    torch.manual_seed(0)
    return tiny_backbone(num_hidden_layers=1, **settings)


def goes_through(config, folder):
    """Attach, take a step, save and load; the step must move the logits, and the loaded model must give the same."""
    ids = torch.arange(3, 15).unsqueeze(0)
    everywhere = torch.ones_like(ids).bool()
    model = attach_quality_head(backbone(), MASK, lora=config).train()
    before = model(ids, logits_at=everywhere).logits.detach()
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.1)
    output = model(ids, logits_at=everywhere)
    (output.logits.square().mean() + output.quality_logits.square().mean()).backward()
    optimizer.step()
    model.eval().save_pretrained(folder)
    torch.manual_seed(1)  # whatever a type draws at its start must not matter
    loaded = PrismModel.from_pretrained(folder, backbone=backbone())
    after = model(ids, logits_at=everywhere).logits
    assert not torch.allclose(after, before, atol=1e-4)
    assert torch.equal(loaded(ids, logits_at=everywhere).logits, after)
    assert torch.equal(loaded.score(ids), model.score(ids))


@pytest.mark.filterwarnings("ignore")  # what PEFT has to say of its experimental types
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in TYPES if one not in QUICK)])
def test_a_type_works_whole_or_is_refused_when_it_is_attached(name, tmp_path):
    config = TYPES[name](**SMALL.get(name, {}))
    if name not in REFUSED:
        goes_through(config, tmp_path / "saved")
    else:
        with pytest.raises(ConfigurationError, match=f"must adapt weights, but {type(config).__name__} .*; use LoraConfig"):
            attach_quality_head(backbone(), MASK, lora=config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            peft.IA3Config(target_modules=["query", "key"]),
            r"must open again when it was saved, but its IA3Config would not \(PEFT refuses it: `feedforward_modules`",
        ),
        (LoraConfig(lora_alpha=0), "`lora_alpha` of LoraConfig multiplies .* a finite number other than 0, got 0"),
        (LoraConfig(alpha_pattern={"query": 0}), r"`alpha_pattern\['query'\]` of LoraConfig multiplies .* got 0"),
        (peft.LoHaConfig(alpha=0), "`alpha` of LoHaConfig multiplies"),
        (peft.AdamssConfig(use_asa=True), "AdamssConfig with `use_asa` gives out its subspaces by calls between the steps"),
    ],
    ids=["ia3 of its own", "lora_alpha", "alpha_pattern", "alpha", "use_asa"],
)
def test_a_config_that_could_not_be_used_is_refused(config, words):
    plain = backbone()
    before = list(plain.state_dict())
    with pytest.raises(ConfigurationError, match=words):
        attach_quality_head(plain, MASK, lora=config)
    assert list(plain.state_dict()) == before
    assert not hasattr(plain, "peft_config")


def test_tensors_that_would_not_be_found_again_are_refused():
    skeleton = without_values(backbone())
    assert {one.device.type for one in (*skeleton.parameters(), *skeleton.buffers())} == {"meta"}
    wrapped = attach_quality_head(backbone(), MASK, lora=LoraConfig(r=2)).backbone
    wrapped.active_peft_config.r = 3
    with pytest.raises(ConfigurationError, match=r"would find \(3, 16\) for `base_.*lora_A.weight`, which is \(2, 16\)"):
        require_reopening(wrapped, skeleton, peft.PeftModel)


def test_of_two_adapters_the_active_one_is_saved_and_loaded(tmp_path):
    ids = torch.arange(3, 15).unsqueeze(0)
    model = attach_quality_head(backbone(), MASK, lora=LoraConfig(r=2)).eval()
    model.backbone.add_adapter("second", LoraConfig(r=3, init_lora_weights=False, target_modules=["query"]))
    model.backbone.set_adapter("second")
    scores = []
    for folder in ("first", "again"):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "second" in name or "quality_head" in name:
                    parameter.normal_()
        model.save_pretrained(tmp_path / folder)
        scores.append(model.score(ids))
        assert not [path for path in (tmp_path / folder).iterdir() if path.is_dir()]
        assert torch.equal(PrismModel.from_pretrained(tmp_path / folder, backbone=backbone()).score(ids), scores[-1])
    load_weights(model, tmp_path / "first")
    assert torch.equal(model.score(ids), scores[0])
    model.backbone.base_model.set_adapter(["default", "second"])
    with pytest.raises(
        ConfigurationError, match="One adapter must be active to be saved or loaded, found default, second; choose"
    ):
        model.save_pretrained(tmp_path / "both")
    assert not (tmp_path / "both").exists()
