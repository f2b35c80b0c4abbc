"""Families that are loaded into a class of transformers give what their released code gives: logits, and the loops' tokens.

Runs where `PRISM_REMOTE_CODE` names a folder of checkouts; docs/families.md says of which.
"""

import importlib
import json
import os
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from remote_families import checked_out_families
from safetensors.torch import save_file
from transformers.modeling_rope_utils import RopeParameters

import prism_plugin as prism
from prism_plugin.backbones import build_backbone, get_backbone_spec, load_backbone
from prism_plugin.backbones.call import call_arguments
from prism_plugin.backbones.compat import transformers_4_names
from prism_plugin.core.selection import select_top

CHECKOUTS = Path(os.environ.get("PRISM_REMOTE_CODE", "nowhere"))
SDAR = CHECKOUTS / "SDAR" / "training" / "model"
FOLDERS = {
    "sdar": SDAR / "SDAR-4B-Chat",
    "Fast_dLLM_Qwen": CHECKOUTS / "Fast_dLLM_v2_7B",
    "stable_diffcoder": CHECKOUTS / "Stable-DiffCoder-8B-Instruct",
}
MASK, BLOCK = 31, 4
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "torch_dtype": "float32", "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": 1, "mask_token_id": MASK,
}  # fmt: skip
CONFIGS = {
    "sdar": {"block_size": BLOCK},
    "Fast_dLLM_Qwen": {"bd_size": BLOCK, "layer_types": ["full_attention"] * 2, "head_dim": 8},
    "stable_diffcoder": {
        "model_type": "llama", "architectures": ["StableDiffcoderForCausalLM"], "tie_word_embeddings": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_stable_diffcoder.StableDiffcoderForCausalLM"},
    },
}  # fmt: skip
RELEASED = [name for name, folder in FOLDERS.items() if folder.is_dir()]
pytestmark = [
    pytest.mark.skipif(not RELEASED, reason="needs the released code: PRISM_REMOTE_CODE names a folder of checkouts"),
    pytest.mark.filterwarnings("default"),  # code for transformers 4 warns of itself
]
IDS = torch.tensor([[5, 9, MASK, 4, MASK, MASK, 22, 7, MASK, 13, 2], [8, 3, 3, MASK, 17, 6, MASK, MASK, 29, 11, MASK]])


class OldCache(transformers.Cache):
    """A key-value cache as these loops take it: each of its layers a pair, cut to a length."""

    def __init__(self):
        self.layers = []

    def crop(self, length):
        self.layers = [tuple(one[..., :length, :] for one in pair) for pair in self.layers]

    def __len__(self):
        return len(self.layers)

    def __getitem__(self, layer):
        return self.layers[layer]

    def get_seq_length(self, layer=0):
        return self.layers[layer][0].shape[-2] if self.layers else 0

    def update(self, keys, values, layer, *_):
        if layer == len(self.layers):
            self.layers.append((keys, values))
        else:
            before = self.layers[layer]
            self.layers[layer] = tuple(torch.cat(pair, dim=-2) for pair in zip(before, (keys, values), strict=True))
        return self.layers[layer]


def rms_norm(hidden_states, *, weight, bias, eps):
    """What SDAR's norm calls, of flash-attn: in float32, as the code that stands behind it in a comment."""
    wide = hidden_states.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(hidden_states.dtype)


def flash_attn_func(query, key, value, *, causal, softmax_scale):
    """What SDAR calls of flash-attn where a block sees all that is there, of [batch, length, heads, width]."""
    parts = (one.transpose(1, 2) for one in (query, key, value))
    attended = F.scaled_dot_product_attention(*parts, is_causal=causal, scale=softmax_scale, enable_gqa=True)
    return attended.transpose(1, 2)


@contextmanager
def names_of_transformers_4():
    """While open, what this code imports is there."""
    triton = types.ModuleType("flash_attn.ops.triton.layer_norm")
    triton.rms_norm_fn = rms_norm
    parents = {name: types.ModuleType(name) for name in ("flash_attn", "flash_attn.ops", "flash_attn.ops.triton")}
    with transformers_4_names(), pytest.MonkeyPatch.context() as patch:  # what is patched last goes first
        for name, module in {**parents, triton.__name__: triton}.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(transformers.cache_utils, "SlidingWindowCache", transformers.cache_utils.StaticCache, raising=False)
        patch.setattr(transformers.utils, "LossKwargs", RopeParameters, raising=False)  # some TypedDict
        for name in ("rope_config_validation", "layer_type_validation"):
            for module in (transformers.modeling_rope_utils, transformers.configuration_utils):
                patch.setattr(module, name, lambda *_: None, raising=False)
        yield


def own_model(name, folder):
    """The released class at a tiny size with random weights, saved as its repository has it."""
    package = types.ModuleType(f"released_{name}")
    package.__path__ = [str(FOLDERS[name])]
    released = json.loads((FOLDERS[name] / "config.json").read_text()) if (FOLDERS[name] / "config.json").exists() else {}
    stated = {**released, **SIZES, **CONFIGS[name]}
    with names_of_transformers_4():
        loss = types.ModuleType(
            f"{package.__name__}.fused_linear_diffusion_cross_entropy"
        )  # of triton; training alone calls it
        loss.FusedLinearDiffusionCrossEntropyLoss = None
        sys.modules |= {package.__name__: package, loss.__name__: loss}
        (modeling,) = (importlib.import_module(f"{package.__name__}.{path.stem}") for path in FOLDERS[name].glob("model*.py"))
        if name == "sdar":
            modeling.flash_attn_func = flash_attn_func
        model_class = getattr(modeling, stated["architectures"][0])
        sizes = {key: value for key, value in stated.items() if key not in ("model_type", "attn_implementation")}
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3)
    (folder / "config.json").write_text(json.dumps(stated))
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return model, modeling


@pytest.fixture(scope="module", params=RELEASED)
def released(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, *own_model(request.param, folder), folder


def by_blocks(length):
    block = torch.arange(length) // BLOCK
    return block[:, None] >= block


def own_logits(name, model, ids):
    allowed = by_blocks(ids.shape[1])
    if name == "Fast_dLLM_Qwen":
        return model(ids, block_size=BLOCK).logits
    if name == "sdar":
        return model(ids, attention_mask=allowed[None].float()).logits
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    return model(ids, attention_mask=additive[None, None]).logits


@torch.no_grad()
def test_logits_are_those_of_the_released_code(released):
    name, own, _, folder = released
    backbone = load_backbone(folder)
    spec = get_backbone_spec(backbone)
    assert (spec.model_type, spec.attention_block_length) == (name, BLOCK)
    assert type(backbone).__module__.startswith("transformers.models.")
    ours = backbone(**call_arguments(spec, IDS, None)).logits
    torch.testing.assert_close(ours, own_logits(name, own, IDS), atol=1e-5, rtol=1e-5)
    plain = backbone(IDS, attention_mask=torch.ones(1, 1, 11, 11, dtype=torch.bool)).logits
    assert not torch.allclose(plain, ours, atol=1e-2), "the mask says nothing"


@pytest.mark.parametrize("folder", [*(path for path in SDAR.glob("SDAR-*")), CHECKOUTS / "Fast_dLLM_v2_7B"])
def test_weights_have_the_names_of_the_released_index(folder):
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        pytest.skip(f"{folder.name} has no index")
    backbone = build_backbone(folder)  # at its full size, without memory
    assert backbone.state_dict().keys() == json.loads(index.read_text())["weight_map"].keys()


def leftmost(view, budget):
    """The order of SDAR's "sequential"."""
    places = torch.arange(view.tokens.shape[1]).expand_as(view.tokens)
    return select_top(-places.float(), view.masked, budget)


def first_then_small_blocks(view, budget):
    """Fast-dLLM v2: the block's first token alone, then the surest of the first two that hold a mask."""
    places = torch.arange(view.tokens.shape[1]).expand_as(view.tokens)
    first = view.masked & (places % BLOCK == 0)
    small = torch.where(view.masked, places // 2, places.shape[1]).amin(-1, keepdim=True)
    eligible = torch.where(first.any(-1, keepdim=True), first, view.masked & (places // 2 == small))
    return select_top(view.confidence, eligible, budget)


@torch.no_grad()
@pytest.mark.parametrize("prompt_length", [7, 8, 9])  # ends inside of a block, and with one
def test_its_own_loop_writes_the_same_tokens(released, prompt_length, monkeypatch):
    name, own, modeling, folder = released
    prompt = torch.randint(2, MASK, (1, prompt_length), generator=torch.Generator().manual_seed(prompt_length))
    end = prompt_length + 12 if name == "stable_diffcoder" else -(-(prompt_length + 12) // BLOCK) * BLOCK
    rule = None
    if name == "sdar":
        rule = leftmost
        loop = {}
        exec(compile((CHECKOUTS / "SDAR" / "generate.py").read_text(), "generate.py", "exec"), loop)
        monkeypatch.setitem(loop, "DynamicCache", OldCache)
        theirs = loop["block_diffusion_generate"](
            own, {"input_ids": prompt}, MASK, gen_length=end - prompt_length, block_length=BLOCK, denoising_steps=BLOCK,
            top_k=1, remasking_strategy="sequential",
        )  # fmt: skip
    elif name == "Fast_dLLM_Qwen":
        rule = first_then_small_blocks
        monkeypatch.setattr(modeling, "DynamicCache", OldCache)
        # it writes the first token of a block beyond what was asked for
        theirs = own.generate(prompt, 16, MASK, small_block_size=2, block_size=BLOCK, stop_token=-1)
        theirs = (theirs[0] if isinstance(theirs, tuple) else theirs)[:, :end]  # copies of it give more
    else:
        make = own._make_block_causal_mask  # in bfloat16, whatever the model is in
        monkeypatch.setattr(modeling, "DynamicCache", OldCache)
        monkeypatch.setattr(own, "_make_block_causal_mask", lambda *sizes, dtype: make(*sizes).float())
        theirs, _ = own.generate_block(prompt, 12, 12, BLOCK, mask_id=MASK, threshold=None)
    model = prism.attach_quality_head(load_backbone(folder), prism.PrismConfig(mask_token_id=MASK))
    sampler = prism.RemaskingSampler(model, num_steps=end, **({} if rule is None else {"unmasking": rule}))
    ours = sampler.sample(prompt, max_new_tokens=end - prompt_length)
    assert theirs.shape == ours.sequences.shape
    assert torch.equal(ours.sequences, theirs)


@torch.no_grad()
@pytest.mark.parametrize("pad", [0, 3])
def test_mmadas_own_loop_writes_the_same_tokens(pad, tmp_path, monkeypatch):
    """Rows padded on the left, as its loop takes them; its code is loaded as the contract loads it."""
    if not (CHECKOUTS / "MMaDA" / "generate.py").is_file():
        pytest.skip("needs MMaDA's repository")
    checked_out_families()["mmada:MMaDA"].save(tmp_path)
    backbone = load_backbone(tmp_path, trust_remote_code=True)
    monkeypatch.setitem(sys.modules, "models", types.SimpleNamespace(MMadaModelLM=None))
    loop = {"__name__": "generate"}
    exec(compile((CHECKOUTS / "MMaDA" / "generate.py").read_text(), "generate.py", "exec"), loop)
    prompt = torch.randint(2, MASK, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)
    mask[0, :pad] = 0
    theirs = loop["generate"](backbone, prompt, 12, 12, 6, mask_id=MASK, attention_mask=F.pad(mask, (0, 12), value=1))
    model = prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=MASK))
    ours = prism.RemaskingSampler(model, num_steps=12, block_length=6).sample(prompt, mask, max_new_tokens=12)
    assert torch.equal(ours.sequences[:, -12:], theirs[:, -12:])


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.2, 0.9])
@pytest.mark.parametrize("prompt_length", [20, 31, 32])  # of fewer than 32 new tokens its steps are fewer, too
def test_llada2s_own_loop_writes_the_same_tokens(prompt_length, threshold, tmp_path):
    name = "llada2_moe:dllm"
    if name not in checked_out_families():
        pytest.skip("needs dLLM's repository")
    checked_out_families()[name].save(tmp_path)
    backbone = load_backbone(tmp_path, trust_remote_code=True)
    prompt = torch.randint(2, MASK, (1, prompt_length), generator=torch.Generator().manual_seed(0))
    forward, new = backbone.forward, 64 - prompt_length

    def as_it_is_meant(ids, attention_mask, **more):
        """Its mask is in bfloat16, whatever the model is in, and it may write the mask token, which no trained model does."""
        output = forward(ids, attention_mask=attention_mask.float(), **more)
        output.logits[..., MASK] = float("-inf")
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "forward", as_it_is_meant)
        theirs = backbone.generate(prompt, steps=32, gen_length=new, threshold=threshold, eos_id=-1, mask_id=MASK)
    model = prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=MASK))
    sampler = prism.RemaskingSampler.from_preset("threshold", model, num_steps=64, threshold=threshold)
    ours = sampler.sample(prompt, max_new_tokens=new)
    assert torch.equal(ours.sequences[0, prompt_length:], theirs.flatten()[-new:])
