"""Heads that look at neighbours, at several layers, or at what tokens have been through: on real models, saved and exported."""

import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from moved_weights import trained
from peft import LoraConfig
from transformers import MegatronBertConfig, MegatronBertForMaskedLM

from prism_plugin.backbones import BackboneSpec, register_backbone
from prism_plugin.backbones import spec as known_specs
from prism_plugin.core.history import HISTORY, History
from prism_plugin.errors import ConfigurationError, StoredStateError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.persistence import load_weights
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

KINDS = {
    "transformer": {"head": "transformer", "head_blocks": 2, "head_num_heads": 2},
    "multi_tap": {"head": "multi_tap", "head_taps": (0, -1)},
    "history": {"head": "mlp", "head_history": HISTORY},
    "all": {"head": "transformer", "head_history": ("commit_confidence", "age")},
}


def build(kind, family="bert", lora=None, **settings):
    backbone = tiny_backbone(family, num_hidden_layers=3)
    config = PrismConfig(mask_token_id=31, **{**KINDS[kind], **settings})
    return trained(attach_quality_head(backbone, config, lora=lora, tokenizer=tiny_tokenizer())).eval()


@contextmanager
def registered(spec):
    """A family that is known for a while."""
    register_backbone(spec, replace=True)
    try:
        yield
    finally:
        del known_specs._SPECS[spec.model_type]


def history_of(ids, seed=0):
    """Some positions written, some given, of each row."""
    generator = torch.Generator().manual_seed(seed)
    age = torch.randint(-1, 5, ids.shape, generator=generator)
    confidence = torch.rand(ids.shape, generator=generator).masked_fill(age < 0, 1.0)
    return History(age, confidence, torch.randint(0, 3, ids.shape, generator=generator))


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_says_the_same_alone_and_padded_on_either_side(kind, family):
    model, rows = build(kind, family), ([5, 6, 31, 7], [8, 9, 10, 31, 31, 11, 12], [13])
    width = max(map(len, rows))
    for side in ("left", "right"):
        ids, mask = torch.full((3, width), 3), torch.zeros(3, width, dtype=torch.bool)
        whole = history_of(ids)
        for number, row in enumerate(rows):
            columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            ids[number, columns], mask[number, columns] = torch.tensor(row), True
        history = whole if model.quality_head.reads_history else None
        together = model(ids, mask, history=history).quality_logits
        for number, row in enumerate(rows):
            own = mask[number]
            of_row = history and History(*(getattr(history, name)[number][own].unsqueeze(0) for name in HISTORY))
            alone = model(torch.tensor([row]), history=of_row).quality_logits
            torch.testing.assert_close(together[number][own], alone[0], msg=f"{side}, row {number}")


def test_a_transformer_head_looks_at_its_neighbours():
    model, ids = build("transformer"), torch.tensor([[5, 6, 7, 8]])
    hidden = model(ids, output_hidden_states=True).hidden_states
    other = hidden.clone()
    other[0, 3] = torch.randn(other.shape[-1])
    moved = (model.quality_head(hidden) - model.quality_head(other)).abs()[0]
    assert (moved > 1e-5).all()
    hides_the_last = torch.tensor([[[True, True, True, False]]])
    unmoved = (model.quality_head(hidden, may_see=hides_the_last) - model.quality_head(other, may_see=hides_the_last)).abs()[0]
    assert (unmoved[:3] == 0).all()


def test_a_transformer_head_sees_no_later_block_of_a_family_that_attends_by_blocks():
    model = build("transformer", "llama")
    model.spec = replace(model.spec, attention_mask="4d", attention_block_length=2)
    may_see = model._may_see(torch.tensor([[5, 6, 7, 8, 9]]), None)
    assert may_see.int().tolist() == [[[1, 1, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0]] * 2 + [[1, 1, 1, 1, 1]]]
    padded = model._may_see(torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[1, 1, 1, 0, 0]]))
    assert padded[0, :3].int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[1, 1, 1, 0, 0]]


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_taps_are_the_states_of_the_layers_and_get_gradients(family, lora):
    model, ids = build("multi_tap", family, lora), torch.tensor([[5, 6, 7, 8, 31]])
    states = model.plain_backbone(ids, output_hidden_states=True).hidden_states
    expected = (
        model.quality_head.layers(
            model(ids, output_hidden_states=True).hidden_states, [states[1], states[-1] if family == "bert" else None]
        )
        if family == "bert"
        else None
    )  # a Llama's last one has gone through its final norm
    found = model(ids).quality_logits
    if expected is not None:
        torch.testing.assert_close(found, expected.squeeze(-1))
    kept = {}
    layers = [module for module in model.plain_backbone.modules() if type(module).__name__ in model.spec.layer_classes]
    hooks = [layer.register_forward_hook(lambda module, args, out, number=number: kept.update({number: out}))
             for number, layer in enumerate(layers)]  # fmt: skip
    again = model(ids, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    first, last = (one if isinstance(one, torch.Tensor) else one[0] for one in (kept[0], kept[2]))
    torch.testing.assert_close(model.quality_head.layers(again.hidden_states, [first, last]).squeeze(-1), again.quality_logits)
    model.train()
    model.activation_checkpointing_enable()
    model.zero_grad()
    model(ids).quality_logits.sum().backward()
    assert all(one.grad is not None for one in model.quality_head.parameters())
    if lora is not None:
        assert all(one.grad.abs().sum() > 0 for name, one in model.named_parameters() if "lora_B" in name)


def test_nothing_is_kept_of_layers_that_nobody_asks_for():
    model, ids = build("multi_tap"), torch.tensor([[5, 6, 7]])
    layers = [module for module in model.plain_backbone.modules() if type(module).__name__ in model.spec.layer_classes]
    alive = []
    note = layers[0].register_forward_hook(
        lambda module, args, out: alive.append(weakref.ref(out if isinstance(out, torch.Tensor) else out[0]))
    )
    with torch.no_grad():
        for look in (lambda: model(ids), lambda: model(ids, with_quality=False), lambda: model.plain_backbone(ids)):
            look()
            gc.collect()
            assert alive.pop()() is None
    note.remove()
    assert [len(layer._forward_hooks) for layer in layers] == [1, 0, 1]
    backbone = model.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_saved_loaded_and_merged(kind, tmp_path):
    model, ids = build(kind, lora=LoraConfig(r=2)), torch.tensor([[5, 6, 7, 31]])
    history = history_of(ids) if model.quality_head.reads_history else None
    before = model(ids, history=history).quality_logits
    model.save_pretrained(tmp_path / "saved")
    again = PrismModel.from_pretrained(tmp_path / "saved", tiny_backbone("bert", num_hidden_layers=3))
    assert again.prism_config.head_taps == KINDS[kind].get("head_taps")
    for name, one in again.quality_head.state_dict().items():
        assert torch.equal(one, model.quality_head.state_dict()[name])
    model.merge_and_unload()
    torch.testing.assert_close(model(ids, history=history).quality_logits, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "multi_tap", "head_taps": (3,)}, r"`head_taps` must name layers of BertForMaskedLM, 0 to 2 .* found 3"),
        ({"head": "multi_tap", "head_taps": (2, -1)}, r"`head_taps` must name each layer once, found \(2, -1\) of 3 layers"),
        ({"head": "transformer", "head_num_heads": 3}, r"`head_num_heads` must divide the backbone's width \d+, found 3"),
    ],
)
def test_what_the_backbone_does_not_have_is_refused_and_leaves_it_as_it_was(settings, message):
    backbone = tiny_backbone("bert", num_hidden_layers=3)
    before = [(name, parameter.requires_grad) for name, parameter in backbone.named_parameters()]
    with pytest.raises(ConfigurationError, match=message):
        attach_quality_head(backbone, PrismConfig(mask_token_id=31, **settings), lora=LoraConfig(r=2))
    assert [(name, parameter.requires_grad) for name, parameter in backbone.named_parameters()] == before
    assert not hasattr(backbone, "peft_config")


def test_taps_need_a_family_whose_layers_are_known():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = MegatronBertForMaskedLM(MegatronBertConfig(vocab_size=32, **sizes))
    config = PrismConfig(mask_token_id=31, **KINDS["multi_tap"])
    spec = BackboneSpec(model_type="megatron-bert", final_hidden_at="cls", lora_target_modules=())
    with registered(spec), pytest.raises(ConfigurationError, match=r"its BackboneSpec names no `layer_classes`; name their cl"):
        attach_quality_head(backbone, config)
    with (
        registered(replace(spec, layer_classes=("Layer",))),
        pytest.raises(ConfigurationError, match=r"but its BackboneSpec names Layer, of which it has none; name"),
    ):
        attach_quality_head(backbone, config)
    with registered(spec):
        backbone._no_split_modules = {"MegatronBertEmbeddings", "MegatronBertLayer"}
        assert attach_quality_head(backbone, config)._hooks[1].hooks_dict_ref() is backbone.bert.encoder.layer[0]._forward_hooks


@pytest.mark.parametrize(
    ("kind", "key", "here", "there"),
    [
        ("transformer", "head_blocks", 2, 1),
        ("transformer", "head_num_heads", 2, 4),
        ("multi_tap", "head_taps", (0, -1), (0, 1)),
        ("history", "head_history", ("age",), ("times_remasked",)),
    ],
)
def test_weights_of_a_head_with_other_settings_are_refused(kind, key, here, there, tmp_path):
    """Most have the same shapes, so that nothing else would tell."""
    build(kind, **{key: there}).save_pretrained(tmp_path)
    model = build(kind, **{key: here})
    with pytest.raises(StoredStateError, match=rf"prism_config.json: `{key}` must be .* to fit this model, found"):
        load_weights(model, tmp_path)


def test_the_settings_that_nobody_gave_are_recorded():
    config = attach_quality_head(
        tiny_backbone("bert", hidden_size=16), PrismConfig(mask_token_id=31, head="transformer")
    ).prism_config
    assert (config.head_hidden_size, config.head_blocks, config.head_num_heads) == (16, 1, 1)
    wide = attach_quality_head(
        tiny_backbone("bert", hidden_size=192, num_attention_heads=4), {"mask_token_id": 31, "head": "transformer"}
    )
    assert wide.prism_config.head_num_heads == wide.quality_head.layers.blocks[0].num_heads == 3


def test_history_changes_what_a_head_says_and_unknown_history_is_one_thing():
    model, ids = build("history"), torch.tensor([[5, 6, 7, 31], [8, 9, 10, 11]])
    history = history_of(ids)
    shown, unknown = model(ids, history=history).quality_logits, model(ids).quality_logits
    assert ((shown - unknown).abs() > 1e-5).all()
    half = model(ids, history=history.hidden(torch.tensor([True, False]))).quality_logits
    torch.testing.assert_close(half, torch.stack((unknown[0], shown[1])))
    for name in HISTORY:
        other = replace(history, **{name: getattr(history, name) + 1 if name != "commit_confidence" else history.age * 0 + 0.5})
        moved = (model(ids, history=other).quality_logits - shown).abs() > 1e-6
        assert moved[history.age >= 0].all(), name
    with pytest.raises(ConfigurationError, match=r"This head reads no history .* but one is given; leave it out"):
        build("transformer")(ids, history=history)


def test_the_sampler_shows_the_head_what_its_tokens_have_been_through(monkeypatch):
    model, seen = build("history"), []
    forward = model.quality_head.forward

    def spied(*args, **kwargs):
        seen.append(kwargs["history"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.quality_head, "forward", spied)
    sampler = RemaskingSampler.from_preset("prism-confidence", model, num_steps=6, num_remask=2)
    ids, canvases = torch.tensor([[5, 6, 31, 31, 31, 31, 31, 31]]), []
    sampler.infill(ids, on_step=lambda record: canvases.append(record.tokens_after))
    assert len(seen) == len(canvases) == 6
    for look, history in enumerate(seen):
        now = ids if look == 0 else canvases[look - 1]
        for place in range(8):
            age = next((back for back in range(look) if canvases[look - 1 - back][0, place] == 31), look)
            given = place < 2 or now[0, place] == 31
            assert history.age[0, place] == (-1 if given else age - 1)
            assert (history.commit_confidence[0, place] < 1) == (not given)
    assert seen[-1].times_remasked.sum() > 0


def test_an_untrained_history_changes_nothing():
    model = attach_quality_head(tiny_backbone("bert"), PrismConfig(mask_token_id=31, head_history=HISTORY))
    torch.nn.init.normal_(model.quality_head.layers[-1].weight)
    ids = torch.tensor([[5, 6, 7, 31]])
    assert torch.equal(model(ids, history=history_of(ids)).quality_logits, model(ids).quality_logits)
