"""A family that sees what stands before the written block causally: looked at whole, a canvas gives what a cache gives."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

import prism_plugin as prism
from prism_plugin.backbones import get_backbone_spec, load_backbone
from prism_plugin.core import BelowRemasking, EvenSchedule
from prism_plugin.decoding import CachedLook, GuidedLook, LeftOutLook, SoftLook
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.testing import tiny_backbone
from prism_plugin.training import get_objective

BLOCK, MASK = 4, 31


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = tiny_backbone("nemotron_labs_diffusion", hidden_size=32)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 2 * parameter.shape[-1] ** -0.5)
    model = prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=MASK))
    torch.nn.init.normal_(model.quality_head.layers[-1].weight)
    return model


def prompt(length):
    return torch.randint(2, MASK, (1, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def with_a_cache(backbone, ids, end):
    """The family's own way: what stands is read causally and kept, a block sees all of it and itself, the surest goes first."""
    kept, begun = DynamicCache(), 0

    def call(tokens, *, causal, keep):
        queries, width = tokens.shape[1], begun + tokens.shape[1]
        mask = torch.ones(1, 1, queries, width, dtype=torch.bool)
        mask = mask.tril(begun) if causal else mask
        places = torch.arange(begun, width)[None]
        logits = backbone(tokens, attention_mask=mask, past_key_values=kept, position_ids=places, use_cache=True).logits
        if not keep:
            kept.crop(-queries)
        return logits

    call(ids, causal=True, keep=True)
    begun, looks = ids.shape[1], []
    while begun < end:
        block = torch.full((1, min(BLOCK - begun % BLOCK, end - begun)), MASK)
        while (block == MASK).any():
            logits = call(block, causal=False, keep=False)
            logits[..., MASK] = float("-inf")
            looks.append(logits)
            surest, tokens = logits.softmax(-1).max(-1)
            place = surest.masked_fill(block != MASK, -1).argmax()
            block[0, place] = tokens[0, place]
        call(block, causal=True, keep=True)
        ids, begun = torch.cat((ids, block), dim=1), begun + block.shape[1]
    return ids


@pytest.mark.parametrize("length", [4, 7, 9])
def test_the_sampler_writes_what_a_cache_writes(model, length):
    expected = with_a_cache(model.plain_backbone, prompt(length), length + 10)
    output = prism.RemaskingSampler(model, num_steps=20).sample(prompt(length), max_new_tokens=10)
    assert torch.equal(output.sequences, expected)
    ragged = torch.cat((torch.cat((prompt(length), torch.zeros(1, 2).long()), dim=1), prompt(length + 2)))
    mask = torch.ones_like(ragged)
    mask[0, length:] = 0
    together = prism.RemaskingSampler(model, num_steps=20).sample(ragged, mask, max_new_tokens=10)
    assert torch.equal(together.sequences[0, -10:], expected[0, -10:])


def test_who_sees_whom(model):
    ids = prompt(12)
    written = torch.tensor([[1] * 4 + [2] * 4 + [1] * 4])

    def moved(changed):
        other = ids.clone()
        other[0, changed] = (other[0, changed] - 2 + 1) % 29 + 2
        states = [model(one, written, output_hidden_states=True).hidden_states[0] for one in (ids, other)]
        return ((states[0] - states[1]).abs().amax(-1) > 1e-6).nonzero().flatten().tolist()

    with torch.no_grad():
        assert moved(2) == list(range(2, 12)), "before the block: what comes behind it"
        assert moved(6) == list(range(4, 12)), "in the block: all of it, and what comes behind"
        assert moved(9) == list(range(9, 12))


def test_a_rating_is_of_each_block_as_it_was_written(model):
    ids, whole = prompt(10), model.score(prompt(10))
    for start in range(0, 10, BLOCK):
        mask = torch.ones_like(ids)
        mask[:, start : start + BLOCK] = 2
        with torch.no_grad():
            alone = model(ids, mask).quality_logits.sigmoid()
        assert torch.equal(whole[:, start : start + BLOCK], alone[:, start : start + BLOCK])


def test_training_looks_at_the_block_that_it_noises(model):
    batch = {"input_ids": prompt(12).repeat(6, 1), "example_id": torch.arange(6)}
    batch |= {"attention_mask": torch.ones(6, 12).long(), "maskable": torch.ones(6, 12).bool()}
    masks = []
    handle = model.plain_backbone.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append((kwargs["input_ids"], kwargs["attention_mask"])), with_kwargs=True
    )
    get_objective("prism", t_min=0.5).step(model, batch, epoch=0, seed=0, unwrapped=model)
    handle.remove()
    assert len(masks) == 2
    for ids, mask in masks:
        for row in range(6):
            changed = (ids[row] != batch["input_ids"][row]).nonzero().flatten()
            first = int(changed[0]) // BLOCK * BLOCK
            expected = torch.ones(12, 12).tril().bool()
            expected[first : first + BLOCK, first : first + BLOCK] = True
            assert torch.equal(mask[row, 0], expected)
    with pytest.raises(ConfigurationError, match="one block of a row is trained at a time; leave `noised_blocks` at auto"):
        get_objective("prism", t_min=0.9, noised_blocks="all").step(model, batch, epoch=0, seed=0, unwrapped=model)


def test_looks_that_do_not_tell_the_block_are_refused(model):
    with pytest.raises(ConfigurationError, match="CachedLook does not tell a model which block is written"):
        prism.RemaskingSampler(model, num_steps=4, look=CachedLook())
    for preset in ("wino", "proseco"):
        with pytest.raises(ConfigurationError, match="Look does not tell a model which block is written"):
            prism.RemaskingSampler.from_preset(preset, model, num_steps=4)
    with pytest.raises(ConfigurationError, match=r"BestOfN rates whole canvases, .* leave `trajectory` out"):
        prism.RemaskingSampler.from_preset("best_of", model, num_steps=4)


@pytest.mark.parametrize("look", [None, GuidedLook(1.0), SoftLook(), LeftOutLook(2)])
def test_every_call_of_the_others_tells_the_block(model, look):
    reads = {} if not isinstance(look, LeftOutLook) else {"remasking": BelowRemasking(0.5, "context_confidence"),
                                                          "schedule": EvenSchedule(1)}  # fmt: skip
    sampler = prism.RemaskingSampler(model, num_steps=8, look=look, **reads)  # some make a trial of their own
    masks = []
    handle = model.plain_backbone.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    sampler.sample(prompt(8), max_new_tokens=8)
    handle.remove()
    assert len(masks) >= 8
    blocks = set()
    for mask in masks:
        behind = mask[:, 0] & ~torch.ones(16, 16).tril().bool()
        seen = [tuple(sorted(set((row.nonzero()[:, 1] // BLOCK).tolist()))) for row in behind]
        assert len(set(seen)) == 1
        blocks |= set(seen)
    assert blocks == {(2,), (3,)}


def test_weights_have_other_names_in_the_familys_files(model, tmp_path):
    model.plain_backbone.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    names = {"model.": "encoder.", "lm_head.": "diffusion_head."}
    weights = {
        next(name.replace(old, new, 1) for old, new in names.items() if name.startswith(old)): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("masked_diffusion_family", "is_causal")}
    config |= {"model_type": "nemotron_labs_diffusion", "architectures": ["NemotronLabsDiffusionModel"]}
    config |= {"auto_map": {"AutoModel": "code_that_is_not_run.NemotronLabsDiffusionModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(tmp_path)
    assert get_backbone_spec(backbone) == model.spec
    assert torch.equal(backbone.lm_head.weight, model.plain_backbone.lm_head.weight)
    assert torch.equal(backbone.model.embed_tokens.weight, model.plain_backbone.model.embed_tokens.weight)
    weights.pop("diffusion_head.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"1 are missing, `lm_head.weight` first"):
        load_backbone(tmp_path)
