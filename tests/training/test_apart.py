"""The first look goes backward before the second is made: the same gradients, and never two graphs."""

import copy
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch.nn.parallel import DistributedDataParallel
from training_methods import METHODS
from transformers.training_args import OptimizerNames

from prism_plugin.core.drafting import DraftRule
from prism_plugin.training import Objective, get_objective
from prism_plugin.training.apart import backward_apart

ROLLED_OUT = get_objective(
    "prism", drafts=(DraftRule(num_drafted=4, num_looks=3, positions="confidence"),), num_drafts=2, t_min=0.3
)


def gradients(model, lab, apart, objective=ROLLED_OUT, rows=None):
    model.zero_grad()
    batch = lab.collate(rows or lab.make_rows(6))
    output = objective.step(model, batch, epoch=1, seed=2, unwrapped=model, apart=apart)
    output.loss.backward()
    return output, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("lora", [True, False])
def test_two_backwards_give_the_gradient_of_one(lab, lora):
    model = lab.build_model(lora=lora, train_backbone=not lora)
    together, expected = gradients(model, lab, None)
    apart, found = gradients(model, lab, lambda: nullcontext(torch.Tensor.backward))
    assert apart.loss.item() == pytest.approx(together.loss.item())
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4, msg=name)


# looks: the first, those that roll a draft out, and the last; and how many of them give logits with a graph
LOOKS = {"prism": (ROLLED_OUT, 4, 1), "proseco": (METHODS["proseco"], 2, 2), "joint": (METHODS["joint"], 4, 2)}


@pytest.mark.parametrize("name", LOOKS)
def test_the_first_graph_is_gone_when_another_look_begins(lab, name):
    objective, looks, with_graph = LOOKS[name]
    model, alive, graphs = lab.build_model(), [], []

    def before_a_look(module, args):
        alive.append(sum(graph() is not None for graph in graphs))

    def after_a_look(module, args, output):
        if output.logits is not None and output.logits.requires_grad:
            graphs.append(weakref.ref(output.logits))

    model.register_forward_pre_hook(before_a_look)
    model.register_forward_hook(after_a_look)
    gradients(model, lab, lambda: nullcontext(torch.Tensor.backward), objective)
    assert len(graphs) == with_graph
    assert alive == [0] * looks


@pytest.mark.parametrize("name", LOOKS)
def test_no_logits_are_left_when_backward_comes_to_the_body(lab, name):
    model, alive, logits = lab.build_model(), [], []

    def after_a_look(module, args, output):
        if output.logits is not None:
            logits.append(weakref.ref(output.logits.untyped_storage()))

    def after_the_body(module, args, output):
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: alive.append(sum(one() is not None for one in logits)))

    model.register_forward_hook(after_a_look)
    model.plain_backbone.bert.register_forward_hook(after_the_body)
    gradients(model, lab, lambda: nullcontext(torch.Tensor.backward), LOOKS[name][0])
    assert alive == [0, 0]


def test_a_batch_without_masks_still_goes_backward_twice(lab):
    model, went = lab.build_model(), []

    def backward(loss):
        went.append(loss.item())
        loss.backward()

    objective, batch = get_objective("prism", t_min=1e-9, t_max=1e-9), lab.collate(lab.make_rows(2))
    losses = lab.losses(objective.step(model, batch, epoch=0, seed=0, unwrapped=model, apart=lambda: nullcontext(backward)))
    losses.loss.backward()
    assert went == [0.0], "every process has to send as many gradients as the others"
    assert all(not one.grad.any() for one in model.parameters() if one.requires_grad)


@pytest.fixture
def alone(tmp_path):
    """A process group of one, in which DDP can be built."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def fake_trainer(engine=DistributedType.NO, optim=OptimizerNames.ADAMW_TORCH, n_gpu=0):
    accelerator = SimpleNamespace(
        distributed_type=engine, backward=torch.Tensor.backward, no_sync=lambda model: model.no_sync()
    )
    return SimpleNamespace(
        args=SimpleNamespace(optim=optim, n_gpu=n_gpu), accelerator=accelerator, current_gradient_accumulation_steps=1
    )


def test_engines_that_cannot_get_one_backward(lab):
    model = lab.build_model()
    assert backward_apart(fake_trainer(), model, model, ROLLED_OUT) is not None
    assert backward_apart(fake_trainer(DistributedType.DEEPSPEED), model, model, ROLLED_OUT) is None
    assert backward_apart(fake_trainer(n_gpu=2), model, model, ROLLED_OUT) is None
    assert backward_apart(fake_trainer(optim=OptimizerNames.ADALOMO), model, model, ROLLED_OUT) is None
    with torch.no_grad():
        assert backward_apart(fake_trainer(), model, model, ROLLED_OUT) is None


@pytest.mark.parametrize("made", ["rolled out", "recorded", "recorded without masks"])
def test_ddp_sends_the_sum_of_both_looks(lab, alone, made):
    model = lab.build_model()
    objective, rows = ROLLED_OUT, lab.make_rows(6)
    if made != "rolled out":
        objective, rows = get_objective("prism_recorded"), lab.recorded_rows(6)[-1 if made.endswith("masks") else 0 :]
    _, expected = gradients(model, lab, None, objective, rows)
    wrapped, trainer = DistributedDataParallel(model), fake_trainer(DistributedType.MULTI_CPU)
    for _ in range(2):  # a parameter without gradient would be an error at the second step
        model.zero_grad()
        step = {"epoch": 1, "seed": 2, "unwrapped": model, "apart": backward_apart(trainer, wrapped, model, objective)}
        assert step["apart"] is not None
        objective.step(wrapped, lab.collate(rows), **step).loss.backward()
        for name in expected:
            torch.testing.assert_close(model.get_parameter(name).grad, expected[name], atol=1e-6, rtol=1e-4)


def test_ddp_with_a_trained_lm_head_goes_backward_once(lab, alone):
    model = lab.build_model(lora=False, train_backbone=True)
    wrapped = DistributedDataParallel(model)
    assert backward_apart(fake_trainer(DistributedType.MULTI_CPU), wrapped, model, ROLLED_OUT) is None


def test_compiled_ddp_goes_backward_once(lab, alone):
    wrapped = torch.compile(DistributedDataParallel(lab.build_model()), backend="eager")
    assert backward_apart(fake_trainer(DistributedType.MULTI_CPU), wrapped, wrapped._orig_mod.module, ROLLED_OUT) is None


def test_rows_stay_in_the_dtype_of_the_model_under_bf16(lab, tmp_path):
    seen = []

    class Listening(Objective):
        def step(self, model, batch, **rest):
            def listen(*args, **kwargs):
                output = model(*args, **kwargs)
                seen.append(None if output.logits is None else output.logits.dtype)
                return output

            return super().step(listen, batch, **rest)

    trainer = lab.make_trainer(tmp_path, bf16=True, max_steps=2)
    trainer.objective = Listening(*vars(get_objective("prism", t_min=0.5)).values())
    trainer.train()
    assert seen[2:] == [torch.bfloat16, None] * 2  # behind the look for parameters without a gradient
    copied = copy.deepcopy(trainer.prism_model)
    assert copied.forward.__self__ is copied, "a copy calls itself"
