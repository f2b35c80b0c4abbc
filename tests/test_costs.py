"""What can be counted of the costs: rows of the LM head, forward passes, operations, the largest tensor, waits. No times."""

import copy
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from prism_plugin.core import (
    ConfidenceUnmasking,
    CorrectedEditing,
    DraftRule,
    EvenSchedule,
    OwnPaceSchedule,
    QualityRemasking,
    WinoDecider,
    mask_tokens,
    terms,
    uniforms,
)
from prism_plugin.decoding import CachedLook, CorrectedLook, GuidedLook, ShadowLook
from prism_plugin.modeling import PrismConfig, QualityHead, attach_quality_head
from prism_plugin.sampling import PRESETS, RemaskingSampler
from prism_plugin.training import get_objective

VOCAB, WIDTH, LAYERS, MASK = 4096, 32, 2, 4095
BATCH, PROMPT, NEW, BLOCK, STEPS = 3, 8, 24, 8, 12
LENGTH, RANK, T = 40, 4, 0.5


def build(lora=None, attention="eager"):  # whose products are counted
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=2 * WIDTH,
        is_causal=False, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    backbone = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return attach_quality_head(backbone, PrismConfig(mask_token_id=MASK), lora=lora)


def body_flops(batch, length, lora_rank=0):
    """Multiply-adds, twice, of the transformer without its LM head."""
    linear = 4 * WIDTH * WIDTH + 3 * WIDTH * 2 * WIDTH + 3 * lora_rank * 2 * WIDTH
    return 2 * batch * length * LAYERS * (linear + 2 * length * WIDTH)


def head_flops(batch, length):
    return 2 * batch * length * (WIDTH * WIDTH + WIDTH)


def new_tensors(args, kwargs, output):
    """The tensors of an operation's output that are neither views of its input nor written in place."""

    def storages(part):
        return {one.untyped_storage().data_ptr() for one in tree_leaves(part) if isinstance(one, torch.Tensor)}

    known = storages((args, kwargs))
    return [
        one for one in tree_leaves(output) if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in known
    ]


class Watch(TorchDispatchMode):
    """Notes the largest tensor that an operation makes, and operations for which the host waits for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.largest = {}  # dtype -> entries
        self.made = []  # entries of each
        self.waits, self.looking = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in tree_leaves(args[1:2])
        )
        if not self.looking and (name in self.WAITS or by_mask):
            self.waits.append(name)
        for tensor in new_tensors(args, kwargs, output):
            self.largest[tensor.dtype] = max(self.largest.get(tensor.dtype, 0), tensor.numel())
            self.made.append(tensor.numel())
        return output

    @contextmanager
    def apart_from(self, model):
        """What the backbone does inside its forward is its own business."""
        handles = [
            model.register_forward_pre_hook(lambda *_: setattr(self, "looking", True)),
            model.register_forward_hook(lambda *_: setattr(self, "looking", False)),
        ]
        with self:
            yield
        for handle in handles:
            handle.remove()


def rows_of(model):
    """Rows that go into the LM head, one entry a forward from now on."""
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: rows.append(out.numel() // VOCAB))
    return rows


def sampler_of(model, **settings):
    rules = {"unmasking": ConfidenceUnmasking(), "remasking": QualityRemasking(), "schedule": EvenSchedule(num_remask=1)}
    return RemaskingSampler(model, num_steps=STEPS, block_length=BLOCK, **rules, **settings)


def canvas():
    tokens = torch.randint(1, MASK, (BATCH, PROMPT + NEW), generator=torch.Generator().manual_seed(0))
    tokens[:, PROMPT:] = MASK
    return tokens


def test_sampling_costs_the_body_the_needed_rows_and_the_head():
    model = build()
    rows = rows_of(model)
    with FlopCounterMode(display=False) as flops:
        sampler_of(model).infill(canvas())
    assert rows == [BATCH * masked for masked in (8, 6, 4, 2)] * 3  # the masks of the active block, four steps a block
    length = PROMPT + NEW
    needed = STEPS * (body_flops(BATCH, length) + head_flops(BATCH, length)) + 2 * sum(rows) * WIDTH * VOCAB
    assert flops.get_total_flops() == needed


def test_sampling_makes_no_tensor_larger_than_its_rows_of_logits():
    model = build()
    with Watch() as watch:
        sampler_of(model).infill(canvas())
    assert watch.largest[torch.float32] == BATCH * BLOCK * VOCAB
    assert torch.float64 not in watch.largest


def test_a_draw_works_in_chunks(monkeypatch):
    monkeypatch.setattr("prism_plugin.core.categorical._CHUNK_ENTRIES_CPU", 2 * VOCAB)
    model = build()
    with Watch() as watch:
        sampler_of(model, temperature=1.0, top_p=0.9).infill(canvas(), generator=torch.Generator().manual_seed(0))
    assert watch.largest[torch.float64] == watch.largest[torch.int64] == 2 * VOCAB


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_waits_once(temperature, monkeypatch):
    monkeypatch.setattr("prism_plugin.core.categorical.is_at_hand", lambda values: False)  # as on an accelerator
    model = build()
    sampler, watch = sampler_of(model, temperature=temperature), Watch()
    sampler.infill(canvas())
    with watch.apart_from(model):
        sampler.infill(canvas())
    before_and_after = len(watch.waits) - (STEPS + 1)
    assert watch.waits.count("nonzero") == STEPS + 1, "which rows are live: once a step, and once to see that none is"
    longer, again = Watch(), RemaskingSampler(**{**vars(sampler), "num_steps": 2 * STEPS})
    with longer.apart_from(model):
        again.infill(canvas())
    assert len(longer.waits) - (2 * STEPS + 1) == before_and_after, "the rest is once a request"


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"proseco", "partial_refinement"}))
def test_no_preset_waits_more_than_once_a_look(name):
    """Those that rewrite a draft until it stands wait for that, once a rewriting; a refinement, once more a round."""
    model, watch = build(), Watch()
    sampler = RemaskingSampler.from_preset(name, model, num_steps=12)
    with watch.apart_from(model):
        output = sampler.infill(canvas(), generator=[torch.Generator().manual_seed(row) for row in range(BATCH)])
    assert watch.waits.count("nonzero") <= output.num_forward_passes.max() + 1, "which rows are live"


def test_a_look_computes_the_positions_that_it_counts():
    """Guided, two canvases; with shadows, a position more for each in reach; corrected, a canvas more at each rewriting; with a
    cache, the block but for its first look."""
    model, lengths = build(attention="sdpa"), []
    handle = model.plain_backbone.get_input_embeddings().register_forward_hook(
        lambda module, args, out: lengths.append(out.shape[:2])
    )
    cases = {
        "plain": {},
        "guided": {"look": GuidedLook(1.0)},
        "shadow": {"look": ShadowLook(), "decider": WinoDecider(), "schedule": OwnPaceSchedule(9)},
        "corrected": {"look": CorrectedLook(1, 2), "editing": CorrectedEditing()},
        "cached": {"look": CachedLook()},
    }
    for name, settings in cases.items():
        sampler = RemaskingSampler(model, num_steps=STEPS, block_length=BLOCK, **settings)
        lengths.clear()
        output = sampler.infill(canvas())
        assert int(output.num_positions.sum()) == sum(rows * length for rows, length in lengths), name
        assert int(output.num_forward_passes.sum()) == sum(rows for rows, _ in lengths), name
    handle.remove()


def objective(**settings):
    return get_objective("prism", t_min=T, t_max=T, **settings)


def batch():
    ids = torch.randint(1, MASK, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    return {"input_ids": ids, "attention_mask": everywhere.long(), "maskable": everywhere, "example_id": torch.arange(BATCH)}


def masked_rows(share=T):
    noise, data = uniforms(0, 0, torch.arange(BATCH), "masked", LENGTH), batch()
    t = torch.full((BATCH,), share)
    return mask_tokens(data["input_ids"], data["maskable"], mask_token_id=MASK, t=t, noise=noise).masked.sum(-1)


def num_masked(share=T):
    return int(masked_rows(share).sum())


DRAFTS = {
    "random": DraftRule(num_drafted=4),
    "confidence": DraftRule(num_drafted=4, positions="confidence", tokens="argmax"),
    "rolled out": DraftRule(num_drafted=4, num_looks=2, positions="confidence"),
}


@pytest.mark.parametrize("rule", DRAFTS)
def test_a_training_step_costs_two_bodies_and_the_masked_rows_once(rule):
    model = build(LoraConfig(r=RANK, target_modules=["q_proj", "k_proj", "v_proj"]))
    rows = rows_of(model)
    with FlopCounterMode(display=False) as flops:
        losses = objective(drafts=(DRAFTS[rule],)).step(model, batch(), epoch=0, seed=0, unwrapped=model)
        forward = flops.get_total_flops()
        losses.loss.backward()
    masked, looks = num_masked(), 2 + (rule == "rolled out")
    again = [masked - 2 * BATCH] if rule == "rolled out" else []
    assert rows == [masked, *again, 0]
    product = 2 * WIDTH * VOCAB
    assert forward == looks * body_flops(BATCH, LENGTH, RANK) + head_flops(BATCH, LENGTH) + product * sum(rows)
    # backward: for frozen weights the gradient of the input alone; twice where weights learn; attention's own five products
    backward = flops.get_total_flops() - forward
    assert backward - product * masked < 3 * 2 * body_flops(BATCH, LENGTH, RANK) + 2 * head_flops(BATCH, LENGTH)


def rolled_out():
    """Rows of the LM head at three looks that fill a third of each row's masks, rounded up."""
    masked = masked_rows()
    return [int((masked - (look * masked + 2) // 3).sum()) for look in range(3)]


EVERYWHERE = BATCH * LENGTH
ROLLED_OUT = {"drafts": [{"share": [1.0, 1.0], "num_looks": 3, "positions": "confidence", "tokens": "argmax"}]}
# settings, rows of each look, how many of them have a gradient, looks with one, whether the head is read
METHODS = {
    "proseco": ({}, [EVERYWHERE, EVERYWHERE], 2 * EVERYWHERE, 2, False),  # the draft reads the visible ones, too
    "joint": (ROLLED_OUT, [*rolled_out(), EVERYWHERE], num_masked() + EVERYWHERE, 2, True),
    "backplay": ({"t_max": 0.75, "step": 0.25}, [num_masked(0.75), 0], 0, 0, True),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_a_method_costs_its_looks_and_the_rows_that_are_read(name):
    settings, expected, learnt, looks_that_learn, judges = METHODS[name]
    lora = LoraConfig(r=RANK, target_modules=["q_proj", "k_proj", "v_proj"]) if looks_that_learn else None
    model = build(lora)
    rows, rank, product = rows_of(model), RANK if lora else 0, 2 * WIDTH * VOCAB
    with FlopCounterMode(display=False) as flops:
        step = get_objective(name, **{"t_min": T, "t_max": T, **settings}).step(
            model, batch(), epoch=0, seed=0, unwrapped=model
        )
        forward = flops.get_total_flops()
        step.loss.backward()
    assert rows == expected
    of_head = judges * head_flops(BATCH, LENGTH)
    assert forward == len(rows) * body_flops(BATCH, LENGTH, rank) + of_head + product * sum(rows)
    backward = flops.get_total_flops() - forward
    assert backward - product * learnt <= 3 * looks_that_learn * body_flops(BATCH, LENGTH, rank) + 2 * of_head


def test_soft_labels_go_through_the_rows_once(monkeypatch):
    asked, ask = [], terms.probability_where
    monkeypatch.setattr(terms, "probability_where", lambda *args: (asked.append(len(args[0])), ask(*args))[1])
    model = build(LoraConfig(r=RANK))
    step = get_objective("remedi", t_min=T, t_max=T).step(model, batch(), epoch=0, seed=0, unwrapped=model)
    assert asked == [num_masked()]
    assert (step.terms["quality"].labels.targets[step.draft.masked] > 0).all()


@pytest.mark.parametrize("rule", DRAFTS)
def test_a_training_step_makes_no_copy_of_its_rows_of_logits(monkeypatch, rule):
    monkeypatch.setattr("prism_plugin.core.categorical._CHUNK_ENTRIES_CPU", 2 * VOCAB)
    model = build(LoraConfig(r=RANK, target_modules=["q_proj", "k_proj", "v_proj"]))
    with Watch() as watch:
        step = objective(drafts=(DRAFTS[rule],)).step(model, batch(), epoch=0, seed=0, unwrapped=model)
        step.loss.backward()
    assert watch.largest[torch.float32] == num_masked() * VOCAB
    assert watch.largest.get(torch.float64, 0) <= 2 * VOCAB
    # the first look's rows, and those of a look that rolls the draft out; their gradient is written over them
    assert len([entries for entries in watch.made if entries > 4 * VOCAB]) == 1 + (rule == "rolled out")


def test_the_head_is_a_hundredth_of_a_forward_of_llada_8b():
    with torch.device("meta"):
        body = LlamaConfig(
            vocab_size=126_464, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=12_288,
            max_position_embeddings=4096, is_causal=False,
        )  # fmt: skip
        model, head = AutoModelForCausalLM.from_config(body), QualityHead(4096)
        tokens = torch.zeros(1, 1024, dtype=torch.long)
        with FlopCounterMode(display=False) as of_body:
            model.model(tokens)
        with FlopCounterMode(display=False) as of_head:
            head.layers(torch.zeros(1, 1024, 4096))
    assert 0 < of_head.get_total_flops() < 0.01 * of_body.get_total_flops()


def test_a_forward_compiles_and_other_numbers_of_rows_need_no_new_graph():
    model, tokens, graphs = build().eval(), canvas(), []

    def eager(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled, seen = torch.compile(copy.deepcopy(model), backend=eager), []
    for count in (3, 5, 7, 9):
        index = torch.arange(count) + 8
        with torch.no_grad():
            expected, found = model(tokens, logits_at=index), compiled(tokens, logits_at=index)
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.quality_logits, expected.quality_logits)
        seen.append(len(graphs))
    products = [sum("linear" in str(node.target) for node in graph.graph.nodes) for graph in graphs]
    assert max(products) >= 7 * LAYERS, "the transformer is one graph; the LM head and the quality head may have theirs"
    assert seen[1] == seen[3], "from the second number on, rows are a dynamic size"
