"""Looks with a cache: a window equals the whole where nothing else changed, and what is old is as old as it should be."""

import shutil
from dataclasses import replace

import pytest
import torch
from loud_models import grouped, remote
from reference import replace_cache
from remote_families import STANDIN_FAMILIES
from sampling.small_samplers import MASK, generators, prompts

from prism_plugin.core import EvenSchedule, QualityRemasking, QualityThresholdRemasking, ThresholdEditing, ThresholdUnmasking
from prism_plugin.decoding import CachedLook
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import headed
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.preset import trajectory_of

NEW = 12


@pytest.fixture(scope="module")
def model():
    return grouped()


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
    model = remote(STANDIN_FAMILIES["llada2_moe"], tmp_path)
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


def test_what_somebody_changes_between_looks_is_computed_with_the_block(model, monkeypatch):
    sampler = prism(model, CachedLook())
    canvas = sampler.lay_infill(torch.cat((prompts(2, 4), torch.full((2, 8), MASK)), dim=1))
    loop = sampler.loop(canvas)
    state = loop.advance(loop.begin(canvas)).state
    watched = Watched(model, monkeypatch)
    other = torch.where(state.tokens[0, 1] == 5, 6, 5)
    loop.advance(replace(state, tokens=state.tokens.index_put((torch.tensor([0]), torch.tensor([1])), other)))
    assert watched.calls == [[[1, 4, 5, 6, 7], [4, 5, 6, 7]]]


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
