"""Windows: a part of a canvas, computed against kept keys and values, equals the whole where nothing else changed."""

import threading

import pytest
import torch
import torch.nn.functional as F
from families import with_marks
from loud_models import build, grouped, remote
from remote_families import STANDIN_FAMILIES, checked_out_families
from sampling.small_samplers import prompts

from prism_plugin.backbones.key_values import KeyValues, Window
from prism_plugin.decoding import CachedLook, ShadowLook
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling.windows import cache_bytes, require_windows
from prism_plugin.sampling import RemaskingSampler

PLAIN_ATTENTION = F.scaled_dot_product_attention
# Everything else is refused, with a reason.
CACHED = ("bert", "roberta", "distilbert", "albert", "electra", "nomic_bert", "eurobert", "esm", "dplm", "esmc", "llama",
          "qwen2", "qwen3", "qwen3_moe", "smollm3", "olmo2", "gpt2", "sdar", "sdar_moe", "Fast_dLLM_Qwen",
          "stable_diffcoder")  # fmt: skip
REMOTE = ("llada", "mmada", "remedi", "illada", "lladamoe", "llada2_moe", "dream")
REFUSED = {
    "deberta-v2": "calls `scaled_dot_product_attention`, but 0 of 1 layers did",
    "mpnet": "calls `scaled_dot_product_attention`, but 0 of 1 layers did",
    "roformer": "can be told positions, but the forward of RoFormerForMaskedLM takes no `position_ids`",
    "modernbert": "layers all see the whole row, but some of modernbert see 64 positions",
    "gemma3_text": "layers all see the whole row, but some of gemma3_text see 4 positions",
}


@pytest.fixture(scope="module")
def model():
    return grouped()


def check_a_window(model):
    """Rows of different length, windows of different size, in slots that are not the rows' order; others' slots stay."""
    torch.manual_seed(2)
    ids, mask = prompts(2, 10), torch.ones(2, 10, dtype=torch.long)
    if model.spec.attention_mask != "none":
        mask[1, 8:] = 0
    kept, slots = KeyValues(3, 10), torch.tensor([2, 0])
    columns = torch.tensor([[7, 1, 2, 5], [6, 3, 0, 9]])
    own = torch.tensor([[True] * 4, [True, True, False, False]])
    wanted = torch.tensor([1, 2, 5, 13, 16])
    if model.spec.logits_alignment == "next_token":
        wanted = wanted + 1
    with torch.no_grad():
        model(prompts(3, 10, seed=3), window=Window(kept))  # what the slots held before
        other = [(keys[1].clone(), values[1].clone()) for keys, values in kept.layers]
        plain = model(ids, mask, logits_at=wanted)
        whole = model(ids, mask, logits_at=wanted, window=Window(kept, slots))
        torch.testing.assert_close(whole.logits, plain.logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(whole.quality_logits[mask.bool()], plain.quality_logits[mask.bool()], atol=2e-5, rtol=1e-4)
        changed = ids.scatter(1, torch.tensor([[7], [6]]), 11)
        before = [keys[0].clone() for keys, _ in kept.layers]
        model(changed, mask, window=Window(kept, slots, columns, own))  # another token, and then the old one again
        for (keys, _), row in zip(kept.layers, before, strict=True):
            assert torch.equal(keys[0, [0, 9]], row[[0, 9]]), "what row 1 did not ask for was written"
            assert not torch.equal(keys[0, 6], row[6])
        part = model(ids, mask, logits_at=wanted, window=Window(kept, slots, columns, own))
        torch.testing.assert_close(part.logits, plain.logits, atol=2e-5, rtol=1e-4)
    told = torch.zeros(2, 10, dtype=torch.bool)
    told[0, [7, 1, 2, 5]] = told[1, [6, 3]] = True
    assert torch.equal(~part.quality_logits.isnan(), told)
    torch.testing.assert_close(part.quality_logits[told], plain.quality_logits[told], atol=2e-5, rtol=1e-4)
    for (keys, values), (old_keys, old_values) in zip(kept.layers, other, strict=True):
        assert torch.equal(keys[1], old_keys)
        assert torch.equal(values[1], old_values)


@pytest.mark.parametrize("name", with_marks(*CACHED))
def test_a_window_of_an_unchanged_canvas_equals_the_whole(name):
    check_a_window(build(name))


@pytest.mark.parametrize("name", REMOTE)
def test_so_it_does_in_code_of_the_families_own(name, tmp_path):
    model = remote(STANDIN_FAMILIES[name], tmp_path)
    check_a_window(model)
    assert not any("get_rotary_embedding" in vars(module) for module in model.modules()), "a patch was left behind"


@pytest.mark.parametrize("name", checked_out_families())
def test_so_it_does_in_released_code(name, tmp_path):
    """Where `PRISM_REMOTE_CODE` says where that is, as for the contract of the families."""
    family = checked_out_families()[name]
    with family.described():
        model = remote(family, tmp_path)
        if name in ("dream:Fast-dLLM", "dream:Dream-Coder") or name.startswith("proseco"):  # they count from the left
            with pytest.raises(ConfigurationError, match="A look with a cache needs a backbone"):
                require_windows(model)
        else:
            check_a_window(model)


@pytest.mark.parametrize(("head", "config"), [("transformer", {"head_blocks": 2}), ("multi_tap", {"head_taps": (0, -1)})])
def test_heads_that_look_elsewhere(head, config):
    check_a_window(build(head=head, **config))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_compute_a_window_is_refused(name):
    with pytest.raises(ConfigurationError, match=REFUSED[name]):
        RemaskingSampler(build(name), num_steps=4, look=CachedLook())


def test_other_refusals(tmp_path, model):
    with pytest.raises(ConfigurationError, match="the forward of MDLM takes no `position_ids`"):
        require_windows(remote(STANDIN_FAMILIES["mdlm"], tmp_path))
    model.plain_backbone.set_attn_implementation("eager")
    with pytest.raises(ConfigurationError, match='load the model with `attn_implementation="sdpa"`'):
        require_windows(model)
    model.plain_backbone.set_attn_implementation("sdpa")
    by_blocks = remote(STANDIN_FAMILIES["llada2_moe"], tmp_path / "by_blocks")
    for ignored in ({"every": 1}, {"refresh_share": 0.5}, {"keep": "prefix"}):
        with pytest.raises(ConfigurationError, match=f"`{next(iter(ignored))}` of CachedLook is about what goes stale"):
            CachedLook(**ignored).may_look_at(by_blocks)
    for wrong in ({"keep": "both"}, {"every": 0}, {"refresh_share": 0.0}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            CachedLook(**wrong)
    with pytest.raises(ConfigurationError, match="A look with shadows needs a backbone whose layers all see the whole row"):
        ShadowLook().may_look_at(build("gemma3_text"))


def test_attention_is_torchs_own_again_and_others_keep_theirs(model):
    kept, seen = KeyValues(1, 4), []

    def elsewhere():
        q, k, v = torch.randn(3, 1, 2, 5, 8)
        seen.append(torch.equal(F.scaled_dot_product_attention(q, k, v), PLAIN_ATTENTION(q, k, v)))

    def while_open(module, args):
        assert F.scaled_dot_product_attention is not PLAIN_ATTENTION
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    layer = model.plain_backbone.model.layers[1]
    with torch.no_grad(), layer.register_forward_pre_hook(while_open):
        model(prompts(1, 4), window=Window(kept))
    assert seen == [True]
    assert F.scaled_dot_product_attention is PLAIN_ATTENTION

    def failing(module, args):
        raise RuntimeError("too late")

    with torch.no_grad(), layer.register_forward_pre_hook(failing), pytest.raises(BackboneError, match="too late"):
        model(prompts(1, 4), window=Window(kept))
    assert F.scaled_dot_product_attention is PLAIN_ATTENTION


@pytest.mark.parametrize(("head", "config"), [("mlp", {}), ("transformer", {"head_blocks": 2})])
def test_memory_is_told_before(head, config):
    model = build(head=head, **config)
    kept = KeyValues(3, 20)
    with torch.no_grad():
        model(prompts(3, 20), window=Window(kept))
    assert cache_bytes(model, 3, 20) == kept.num_bytes
    assert kept.num_bytes == 4 * 3 * 20 * 16 * (2 * 2 + (head == "transformer"))
