"""Looks with a cache: a window equals the whole where nothing else changed, and what is old is as old as it should be."""

import shutil
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from families import with_marks
from reference import replace_cache
from remote_families import STANDIN_FAMILIES
from sampling.small_samplers import MASK, generators, prompts

from prism_plugin.backbones import load_backbone
from prism_plugin.backbones.key_values import KeyValues, Window
from prism_plugin.core import EvenSchedule, QualityRemasking, QualityThresholdRemasking, ThresholdEditing, ThresholdUnmasking
from prism_plugin.decoding import CachedLook, ShadowLook
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling import PrismConfig, attach_quality_head, headed
from prism_plugin.modeling.windows import cache_bytes, require_windows
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.preset import trajectory_of
from prism_plugin.testing import tiny_backbone

PLAIN_ATTENTION = F.scaled_dot_product_attention
NEW = 12
# Everything else is refused, with a reason.
CACHED = ("bert", "roberta", "distilbert", "albert", "electra", "nomic_bert", "eurobert", "esm", "dplm", "esmc", "llama",
          "qwen2", "qwen3", "qwen3_moe", "smollm3", "olmo2", "gpt2")  # fmt: skip
REMOTE = ("llada", "remedi", "illada", "lladamoe", "llada2_moe", "dream")
REFUSED = {
    "deberta-v2": "calls `scaled_dot_product_attention`, but 0 of 1 layers did",
    "mpnet": "calls `scaled_dot_product_attention`, but 0 of 1 layers did",
    "roformer": "can be told positions, but the forward of RoFormerForMaskedLM takes no `position_ids`",
    "modernbert": "layers all see the whole row, but some of modernbert see 64 positions",
    "gemma3_text": "layers all see the whole row, but some of gemma3_text see 4 positions",
}


def loud(model):
    """The model, with a head whose quality differs between tokens, and attention that listens to more than one of them."""
    with torch.no_grad():
        for parameter in model.quality_head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def build(name="llama", head="mlp", **config):
    torch.manual_seed(0)
    return loud(attach_quality_head(tiny_backbone(name), PrismConfig(mask_token_id=MASK, head=head, **config)))


@pytest.fixture(scope="module")
def model():
    """Two queries for each key."""
    torch.manual_seed(1)
    backbone = tiny_backbone("qwen3", num_attention_heads=4)
    config = backbone.config
    config.num_key_value_heads = 2
    with torch.no_grad():
        backbone = type(backbone)(config).eval()
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(3 if "proj" in name else 1)
    return loud(attach_quality_head(backbone, PrismConfig(mask_token_id=MASK)))


def remote(name, folder):
    STANDIN_FAMILIES[name].save(folder)
    return loud(attach_quality_head(load_backbone(folder, trust_remote_code=True), PrismConfig(mask_token_id=MASK)))


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
        before = [(keys[0, :, :, :].clone(), keys[0, 0].clone()) for keys, _ in kept.layers]
        model(changed, mask, window=Window(kept, slots, columns, own))  # and back again, so that all was written twice
        assert all(torch.equal(keys[0, 0], first) for (keys, _), (_, first) in zip(kept.layers, before, strict=True))
        assert not any(torch.equal(keys[0], row) for (keys, _), (row, _) in zip(kept.layers, before, strict=True))
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
    check_a_window(remote(name, tmp_path))


@pytest.mark.parametrize(("head", "config"), [("transformer", {"head_blocks": 2}), ("multi_tap", {"head_taps": (0, -1)})])
def test_heads_that_look_elsewhere(head, config):
    check_a_window(build(head=head, **config))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_compute_a_window_is_refused(name):
    with pytest.raises(ConfigurationError, match=REFUSED[name]):
        RemaskingSampler(build(name), num_steps=4, look=CachedLook())


def test_other_refusals(tmp_path, model):
    with pytest.raises(ConfigurationError, match="the forward of MDLM takes no `position_ids`"):
        require_windows(remote("mdlm", tmp_path))
    model.plain_backbone.set_attn_implementation("eager")
    with pytest.raises(ConfigurationError, match='load the model with `attn_implementation="sdpa"`'):
        require_windows(model)
    model.plain_backbone.set_attn_implementation("sdpa")
    by_blocks = remote("llada2_moe", tmp_path / "by_blocks")
    for ignored in ({"every": 1}, {"refresh_share": 0.5}, {"keep": "prefix"}):
        with pytest.raises(ConfigurationError, match=f"`{next(iter(ignored))}` of CachedLook is about what goes stale"):
            CachedLook(**ignored).may_look_at(by_blocks)
    for wrong in ({"keep": "both"}, {"every": 0}, {"refresh_share": 0.0}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            CachedLook(**wrong)
    with pytest.raises(ConfigurationError, match="A look with shadows needs a backbone whose layers all see the whole row"):
        ShadowLook().may_look_at(build("gemma3_text"))


def prism(model, look, num_steps=9, **settings):
    rules = {"remasking": QualityRemasking(), "schedule": EvenSchedule(1), "block_length": 4, **settings}
    return RemaskingSampler(model, num_steps=num_steps, look=look, **rules)


def request(lengths=(5, 2, 7)):
    ids, mask = prompts(len(lengths), max(lengths)), torch.ones(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, length:] = 0
    return ids, mask


@pytest.mark.parametrize(("prefix", "every"), [(False, None), (True, None), (False, 2)])
def test_tokens_are_those_of_a_literal_cache(model, prefix, every):
    look = CachedLook("prefix" if prefix else "dual", every, refresh_share=None)
    ids, mask = request()
    output = prism(model, look).sample(ids, mask, max_new_tokens=NEW)
    plain = prism(model, None).sample(ids, mask, max_new_tokens=NEW)
    for row, length in enumerate(mask.sum(-1).tolist()):
        tokens = torch.cat((ids[row, :length], torch.full((NEW,), MASK)))
        options = {"num_steps": 3, "block_length": 4, "prefix": prefix, "every": every, "num_remask": 1}
        expected, computed = replace_cache.sample(model.plain_backbone, model.quality_head, tokens, MASK, **options)
        assert torch.equal(output.sequences[row, -NEW:], expected[-NEW:])
        assert int(output.num_positions[row]) == computed
    assert output.num_forward_passes.tolist() == plain.num_forward_passes.tolist()
    assert not torch.equal(output.sequences, plain.sequences), "the cache made no difference, so little was compared"


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0.8}, {"remasking": QualityThresholdRemasking(0.6), "unmasking": ThresholdUnmasking(0.2)},
])  # fmt: skip
def test_a_whole_look_each_time_is_the_plain_look(model, settings):
    ids, mask = request()
    plain, cached = (
        prism(model, look, **settings).sample(ids, mask, max_new_tokens=NEW, generator=generators(1, 2, 3), return_trace=True)
        for look in (None, CachedLook(every=1))
    )
    assert torch.equal(cached.sequences, plain.sequences)
    assert torch.equal(cached.num_positions, plain.num_positions)
    torch.testing.assert_close(cached.quality, plain.quality, equal_nan=True)
    for one, other in zip(cached.trace, plain.trace, strict=True):
        torch.testing.assert_close(one.confidence, other.confidence, equal_nan=True)
        torch.testing.assert_close(one.quality, other.quality, equal_nan=True)


@pytest.mark.parametrize("settings", [{}, {"unmasking": ThresholdUnmasking(0.3), "schedule": EvenSchedule(2)}])
def test_by_blocks_it_is_exact(tmp_path, monkeypatch, settings):
    model = remote("llada2_moe", tmp_path)
    monkeypatch.setattr(model, "spec", replace(model.spec, attention_block_length=4))
    ids, mask = request()
    plain, cached = (
        prism(model, look, block_length=None, **settings).sample(ids, mask, max_new_tokens=NEW, return_trace=True)
        for look in (None, CachedLook())
    )
    assert torch.equal(cached.sequences, plain.sequences)
    assert cached.num_remasked.sum() > 0
    assert (cached.num_positions < 0.7 * plain.num_positions).all()
    torch.testing.assert_close(cached.quality, plain.quality, equal_nan=True)
    for one, other in zip(cached.trace, plain.trace, strict=True):
        torch.testing.assert_close(one.confidence, other.confidence, equal_nan=True, atol=1e-5, rtol=1e-4)
        both = ~one.quality.isnan()
        torch.testing.assert_close(one.quality[both], other.quality[both], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("look", [CachedLook(), CachedLook("prefix", every=2), CachedLook(refresh_share=0.25, widths=(5,))])
def test_rows_do_not_depend_on_each_other(model, look):
    """Thresholds and an EOS bring rows apart: they begin blocks, and are looked at whole, at different looks."""
    ids, mask = request((5, 2, 7, 4))
    settings = {"unmasking": ThresholdUnmasking(0.25), "schedule": EvenSchedule(2), "num_steps": 12, "eos_token_id": 9}
    seeds, sampler = (11, 12, 13, 14), prism(model, look, temperature=0.9, **settings)
    together = sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(*seeds))
    for row, length in enumerate(mask.sum(-1).tolist()):
        alone = sampler.sample(ids[row : row + 1, :length], max_new_tokens=NEW, generator=generators(seeds[row]))
        assert torch.equal(together.sequences[row, -NEW:], alone.sequences[0, -NEW:])
        assert together.num_positions[row] == alone.num_positions[0]
        assert together.num_forward_passes[row] == alone.num_forward_passes[0]
    assert len(set(together.num_forward_passes.tolist())) > 1


class Watched:
    """A model that notes the columns and rows of its calls."""

    def __init__(self, model, monkeypatch):
        self.calls = []
        forward = model.forward

        def noted(tokens, *args, window=None, **kwargs):
            own = None
            if window.columns is not None:
                kept = torch.ones_like(window.columns).bool() if window.own is None else window.own
                own = [sorted(row[keep].tolist()) for row, keep in zip(window.columns, kept, strict=True)]
            self.calls.append(own or [None] * len(tokens))
            return forward(tokens, *args, window=window, **kwargs)

        monkeypatch.setattr(model, "forward", noted)


def test_whole_looks_come_when_they_should(model, monkeypatch):
    sampler = prism(model, CachedLook(refresh_share=0.5), num_steps=10, block_length=6, schedule=EvenSchedule(2))
    watched = Watched(model, monkeypatch)
    output = sampler.sample(prompts(1, 4), max_new_tokens=NEW, return_trace=True)
    taken_back, block_begins = 0, True
    for record, (columns,) in zip(output.trace, watched.calls, strict=True):
        whole = block_begins or taken_back >= 3
        block = range(4, 10) if (record.tokens_before[0, 4:10] == MASK).any() else range(10, 16)
        assert columns == (None if whole else list(block))
        taken_back = int(record.remasked.sum()) + (0 if whole else taken_back)
        block_begins = not (record.tokens_after[0, 4:10] == MASK).any() and (record.tokens_before[0, 4:10] == MASK).any()
    assert watched.calls.count([None]) > 2


def test_what_changes_elsewhere_is_computed_with_the_block(model, monkeypatch):
    editing = ThresholdEditing(0.0, blocks="begun")
    sampler = RemaskingSampler(model, num_steps=12, block_length=4, editing=editing, look=CachedLook())
    watched = Watched(model, monkeypatch)
    output = sampler.sample(prompts(1, 4), max_new_tokens=8, return_trace=True)
    edited = 0
    for record, (columns,), (following,) in zip(output.trace, watched.calls, watched.calls[1:], strict=False):
        changed = (record.tokens_before != record.tokens_after)[0].nonzero().flatten().tolist()
        if following is not None:
            assert set(changed) <= set(following)
        edited += columns is not None and any(column < 8 for column in changed) and max(columns) > 8
    assert edited, "nothing was overwritten before the active block"


def test_copies_of_a_row_do_not_write_into_each_other(model):
    sampler = prism(model, CachedLook(refresh_share=None), num_steps=12, temperature=1.0)
    canvas = sampler.lay_infill(torch.cat((prompts(2, 4), torch.full((2, 8), MASK)), dim=1))
    loop = sampler.loop(canvas, generators(1, 2))
    state = loop.advance(loop.begin(canvas)).state
    left_behind = loop.advance(state).state
    copies = left_behind.take(torch.tensor([0, 0, 1]))
    following = sampler.loop(canvas.take(torch.tensor([0, 0, 1])), generators(1, 1, 2)).advance(copies).state
    assert len(set(following.memory["look"]["rows"].slots.tolist())) == 3
    # the first copy had the original's cache, the second none, so it is looked at whole
    assert (following.num_positions - copies.num_positions).tolist() == [4, 12, 4]
    assert not torch.equal(following.tokens[0], following.tokens[2])
    again = loop.advance(left_behind).state  # what was left behind finds its rows used
    assert (again.num_positions - left_behind.num_positions).tolist() == [12, 12]


@pytest.mark.parametrize("trajectory", ["best_of", {"name": "self_rewarding_smc", "num_particles": 3}, "particle_gibbs"])
def test_several_runs_at_once(model, trajectory):
    settings = {"trajectory": trajectory_of(trajectory)}
    settings |= {"remasking": QualityRemasking(), "schedule": EvenSchedule(1)} if trajectory == "best_of" else {}
    outputs = []
    for look in (None, CachedLook(every=1), CachedLook()):
        sampler = RemaskingSampler(model, num_steps=9, block_length=4, look=look, temperature=1.0, **settings)
        outputs.append(sampler.sample(prompts(2, 4), max_new_tokens=8, generator=generators(1, 2)))
    plain, whole, cached = outputs
    assert torch.equal(plain.sequences, whole.sequences)
    assert torch.equal(plain.num_positions, whole.num_positions)
    assert (cached.num_positions < plain.num_positions).all()
    assert not (cached.sequences == MASK).any()


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
    assert "get_rotary_embedding" not in vars(model.plain_backbone)


@pytest.mark.parametrize(("head", "config"), [("mlp", {}), ("transformer", {"head_blocks": 2})])
def test_memory_is_told_before(head, config):
    model = build(head=head, **config)
    kept = KeyValues(3, 20)
    with torch.no_grad():
        model(prompts(3, 20), window=Window(kept))
    assert cache_bytes(model, 3, 20) == kept.num_bytes
    assert kept.num_bytes == 4 * 3 * 20 * 16 * (2 * 2 + (head == "transformer"))


@pytest.fixture
def compiling(monkeypatch):
    """torch.compile without a C++ compiler: what is traced runs as it is. Gives the graphs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(headed, "_compiled", lambda mode: torch.compile(headed._call_backbone, backend=backend))
    torch._dynamo.utils.counters.clear()
    yield graphs
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # what torch.compile warns about changes with its version
def test_compiled_windows_equal_eager_ones(model, compiling):
    """Ragged rows, blocks at different columns and padded widths: one graph for each number of rows."""
    ids, mask = request((5, 2))
    look = CachedLook(widths=(3, 6))
    eager, compiled = (
        prism(model, replace(look, compile_mode=mode)).sample(ids, mask, max_new_tokens=NEW, return_trace=True)
        for mode in (None, "default")
    )
    assert torch.equal(compiled.sequences, eager.sequences)
    assert torch.equal(compiled.num_positions, eager.num_positions)
    torch.testing.assert_close(compiled.quality, eager.quality, equal_nan=True, atol=1e-5, rtol=1e-4)
    for one, other in zip(compiled.trace, eager.trace, strict=True):
        torch.testing.assert_close(one.confidence, other.confidence, equal_nan=True, atol=1e-5, rtol=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert len(compiling) == 1


def test_windows_are_rounded_up(model, monkeypatch):
    widths, forward = [], model.forward

    def noted(tokens, *args, window=None, **kwargs):
        widths.extend([] if window is None or window.columns is None else [window.columns.shape[1]])
        return forward(tokens, *args, window=window, **kwargs)

    monkeypatch.setattr(model, "forward", noted)
    ids = prompts(2, 4)
    plain = prism(model, CachedLook()).sample(ids, max_new_tokens=NEW)
    for given, expected in (((8, 6), 6), ([3], 4), ((64,), 16)):
        del widths[:]
        padded = prism(model, CachedLook(widths=given)).sample(ids, max_new_tokens=NEW)
        assert set(widths[2:]) == {expected}  # the first two are the trial's
        assert torch.equal(padded.sequences, plain.sequences)
        assert torch.equal(padded.num_positions, plain.num_positions)
    for wrong in ((), (0,), "4", (1.5,)):
        with pytest.raises(ConfigurationError, match="`widths` must be numbers of positions"):
            CachedLook(widths=wrong)
    with pytest.raises(ConfigurationError, match="compile_mode"):
        CachedLook(compile_mode="fast")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("clang") is None, reason="no C compiler")
@pytest.mark.filterwarnings("ignore")
def test_inductor_gives_the_same(model):
    ids = prompts(2, 4)
    eager, compiled = (
        prism(model, CachedLook(compile_mode=mode)).sample(ids, max_new_tokens=NEW) for mode in (None, "default")
    )
    assert torch.equal(compiled.sequences, eager.sequences)
    torch.testing.assert_close(compiled.quality, eager.quality, equal_nan=True, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()
