"""Where weights go: what the machine does not have is one sentence, and transformers puts the rest where it is told."""

import pytest
import torch
from remote_families import MASK, STANDIN_FAMILIES

from prism_plugin.backbones import best_device, load_backbone, require_device, require_placement
from prism_plugin.backbones.devices import accelerators
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone

FOUND = "prism_plugin.backbones.devices.accelerators"


def test_accelerators_are_those_that_torch_finds(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert accelerators() == ()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert accelerators() == ("xpu:0", "xpu:1")


@pytest.mark.parametrize("there", [(), ("cuda:0", "cuda:1"), ("mps:0",)], ids=str)
def test_devices_are_held_against_those_that_are_there(monkeypatch, there):
    monkeypatch.setattr(FOUND, lambda: there)
    assert best_device() == (there[0] if there else "cpu")
    known = {"cpu", "cuda", "cuda:0", "cuda:1", "mps", "mps:0"}
    for device in (*known, "cuda:2", "xpu", "gpu", "meta", "", "auto", 0, 1, 2, -1, True, 1.5, None, torch.device("cuda")):
        name = str(device)
        index = device if isinstance(device, int) and not isinstance(device, bool) else None
        fits = name == "cpu" or (0 <= index < len(there) if index is not None else f"{name}:0" in there or name in there)
        if fits:
            require_device(device, "--device")
        else:
            listed = ", ".join(("cpu", *there))
            with pytest.raises(ConfigurationError) as refused:
                require_device(device, "--device")
            expected = f"`--device` must be a device that torch finds on this machine, {listed}, got {name!r}."
            assert str(refused.value) == expected


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({"dtype": "bf16"}, "`dtype` must be a floating dtype of torch such as bfloat16, or \"auto\", got 'bf16'."),
        ({"dtype": torch.int8}, "got torch.int8"),
        ({"dtype": 16}, "got 16"),
        ({"device_map": "cuda:7"}, "`device_map` must be a device that torch finds on this machine, cpu, got 'cuda:7'."),
        ({"device_map": {"bert": "cpu", "cls": 0}}, "got '0'."),
        ({"device_map": "Auto"}, "got 'Auto'."),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(monkeypatch, placement, words):
    monkeypatch.setattr(FOUND, tuple)
    with pytest.raises(ConfigurationError) as refused:
        load_backbone("./nowhere", **placement)
    assert words in str(refused.value)


@pytest.mark.parametrize("device_map", [None, "auto", "cpu", "meta", {"bert": "cpu", "cls": "disk"}, torch.device("cpu")])
@pytest.mark.parametrize("dtype", [None, "auto", "float16", torch.bfloat16])
def test_what_can_be_is_taken(monkeypatch, device_map, dtype):
    monkeypatch.setattr(FOUND, tuple)
    require_placement(dtype, device_map)


def test_a_device_map_is_what_transformers_makes_of_it(tmp_path):
    tiny_backbone(num_hidden_layers=1).save_pretrained(tmp_path)
    plain, ids = load_backbone(tmp_path, device_map="auto"), torch.randint(3, 31, (2, 5))
    assert {parameter.device.type for parameter in plain.parameters()} == {"cpu"}
    bare = load_backbone(tmp_path, device_map="meta", dtype="float16")
    assert {(parameter.device.type, parameter.dtype) for parameter in bare.parameters()} == {("meta", torch.float16)}
    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "cls": "cpu"}
    offloaded = load_backbone(tmp_path, device_map=places)
    assert offloaded.hf_device_map == places
    assert all(parameter.is_meta for parameter in offloaded.bert.encoder.parameters())
    assert torch.equal(offloaded(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("family", ["mdlm", "llada"])
def test_layers_of_code_out_of_a_repository_are_not_split(tmp_path, family):
    """MDLM names none, and LLaDA classes that it does not have."""
    STANDIN_FAMILIES[family].save(tmp_path)
    backbone = load_backbone(tmp_path, trust_remote_code=True, device_map="auto")
    layers = set(backbone._no_split_modules)
    assert layers
    assert layers <= {type(module).__name__ for module in backbone.modules()}


def test_a_tied_llada_cannot_be_shared_out(tmp_path):
    STANDIN_FAMILIES["llada"].save(tmp_path, weight_tying=True)
    places = {"model.transformer.wte": "disk", "model.transformer.blocks": "cpu", "model.transformer.ln_f": "cpu"}
    with pytest.raises(BackboneError, match=r"needs all weights on one device, but `device_map` shares them out over cpu, d"):
        load_backbone(tmp_path, trust_remote_code=True, device_map=places)
    backbone = load_backbone(tmp_path, trust_remote_code=True, device_map="cpu")
    attach_quality_head(backbone, PrismConfig(mask_token_id=MASK))
