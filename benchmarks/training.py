"""How long a training step takes, and how much memory, next to the least that it can and to how the field does it.

    python -m benchmarks.training [--shape llada] [--sweep] [--device cuda --dtype bfloat16]

A step is forward and backward of one batch with LoRA of rank 16 on q, k and v; every token may be masked, half are. `body`: the
transformer without its LM head, twice forward and backward. `floor`: the same and the LM head's two matrix products, forward
and for the gradient of its input, on the masked rows. `full logits`: the backbone as it is, twice. `reference`: the field's way
(`benchmarks/field.py`). `ours`: the objective `prism`. The last two fill the surest 8 masks of each row.

`proseco`, `joint` and `backplay` are these objectives, each beside a floor of its own: the body's looks, with and without
gradient, and the LM head's products for the rows that terms learn at (forward, and for the gradient of its input) and that only
drafts read (forward). `joint` fills all masks over three looks, the surest first; `backplay` looks at 0.75 masked, then at 0.5,
and has no LoRA.
"""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import field
from benchmarks.contest import Machine, Prepare
from benchmarks.report import run, sweep_of
from benchmarks.shapes import Shape, build_model, training_tokens
from prism_plugin.core import DraftRule, mask_tokens, uniforms
from prism_plugin.modeling import PrismModel
from prism_plugin.training import Objective, get_objective

T, MORE, NUM_DRAFTED = 0.5, 0.75, 8
OBJECTIVE = get_objective(
    "prism", drafts=(DraftRule(num_drafted=NUM_DRAFTED, positions="confidence", tokens="argmax"),), t_min=T, t_max=T
)


def example_ids(shape: Shape, machine: Machine) -> Tensor:
    """Numbers of the rows, from which the masks follow."""
    return torch.arange(shape.batch, device=machine.device)


def collated(clean_ids: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """The batch as the collator gives it."""
    return {
        "input_ids": clean_ids,
        "attention_mask": torch.ones_like(clean_ids),
        "maskable": torch.ones_like(clean_ids, dtype=torch.bool),
        "example_id": ids,
    }


def noised_tokens(shape: Shape, machine: Machine, mask_token_id: int, share: float = T) -> Tensor:
    """The batch with the masks that an objective draws in epoch 0 with seed 0."""
    clean_ids, ids = training_tokens(shape, machine), example_ids(shape, machine)
    noise = uniforms(0, 0, ids, "masked", shape.training_length)
    t = torch.full((shape.batch,), share, device=machine.device)
    everywhere = torch.ones_like(clean_ids, dtype=torch.bool)
    return mask_tokens(clean_ids, everywhere, mask_token_id=mask_token_id, t=t, noise=noise).noised_ids


def prepare_body(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The transformer alone, twice; its LM head is thrown away."""
    model = build_model(shape, machine, lora=True).train()
    tokens = training_tokens(shape, machine)
    body, parameters = model.plain_backbone.base_model, _trained(model)
    del model
    return _from_zero(parameters, lambda: [body(tokens).last_hidden_state.float().mean().backward() for _ in range(2)])


def prepare_floor(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The transformer twice, and the LM head's weight times the masked rows, and their gradient times the weight."""
    model = build_model(shape, machine, lora=True).train()
    tokens = training_tokens(shape, machine)
    body, weight, parameters = model.plain_backbone.base_model, model.get_output_embeddings().weight, _trained(model)
    count = int((noised_tokens(shape, machine, model.mask_token_id) == model.mask_token_id).sum())

    def step() -> None:
        for look in range(2):
            hidden_states = body(tokens).last_hidden_state
            if not look:
                with torch.no_grad():
                    (hidden_states.flatten(0, 1)[:count] @ weight.T) @ weight
            hidden_states.float().mean().backward()

    return _from_zero(parameters, step)


def prepare_full(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The backbone as it is, twice."""
    model = build_model(shape, machine, lora=True).train()
    tokens = training_tokens(shape, machine)
    return _from_zero(
        _trained(model), lambda: [model.plain_backbone(tokens).logits.float().mean().backward() for _ in range(2)]
    )


def prepare_reference(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The field's way."""
    model = build_model(shape, machine, lora=True).train()
    mask = model.mask_token_id
    clean_ids, noised_ids = training_tokens(shape, machine), noised_tokens(shape, machine, mask)
    settings = {
        "t": T,
        "num_drafted": NUM_DRAFTED,
        "diffusion_weight": OBJECTIVE.weights["diffusion_weight"],
        "mask_token_id": mask,
    }

    def step() -> None:
        field.training_loss(model.backbone, model.quality_head, clean_ids, noised_ids, **settings).backward()

    return _from_zero(_trained(model), step)


def prepare_ours(shape: Shape, machine: Machine) -> Callable[[], object]:
    """the objective `prism`."""
    model = build_model(shape, machine, lora=True).train()
    return _from_zero(_trained(model), _step_of(OBJECTIVE, model, shape, machine))


def _step_of(objective: Objective, model: PrismModel, shape: Shape, machine: Machine) -> Callable[[], object]:
    batch = collated(training_tokens(shape, machine), example_ids(shape, machine))

    def step() -> None:
        settings = {"epoch": 0, "seed": 0, "unwrapped": model, "apart": lambda: nullcontext(Tensor.backward)}
        objective.step(model, batch, **settings).loss.backward()

    return step


@dataclass(frozen=True)
class Work:
    """What an objective cannot do without.

    Attributes:
        looks: Of each, whether it has a gradient, and which rows of the LM head only the draft reads, and at which terms
            learn: names of `row_counts`.
        settings: Of the objective.
        lora: Train LoRA, and not the head alone.
    """

    looks: tuple[tuple[bool, str, str], ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    lora: bool = True

    def prepare_floor(self, shape: Shape, machine: Machine) -> Callable[[], object]:
        """The looks and the products alone."""
        model = build_model(shape, machine, lora=self.lora).train()
        tokens, counts = training_tokens(shape, machine), row_counts(shape, machine, model.mask_token_id)
        body, weight, parameters = model.plain_backbone.base_model, model.get_output_embeddings().weight, _trained(model)

        def step() -> None:
            for learns, drafted, learnt in self.looks:
                with nullcontext() if learns else torch.no_grad():
                    hidden_states = body(tokens).last_hidden_state
                with torch.no_grad():
                    rows = hidden_states.flatten(0, 1)
                    if counts[drafted]:
                        rows[: counts[drafted]] @ weight.T
                    if counts[learnt]:
                        (rows[: counts[learnt]] @ weight.T) @ weight
                if learns:
                    hidden_states.float().mean().backward()

        return _from_zero(parameters, step)

    def prepare(self, name: str, shape: Shape, machine: Machine) -> Callable[[], object]:
        """A step of the objective."""
        model = build_model(shape, machine, lora=self.lora).train()
        objective = get_objective(name, **{"t_min": T, "t_max": T, **self.settings})
        return _from_zero(_trained(model), _step_of(objective, model, shape, machine))


def row_counts(shape: Shape, machine: Machine, mask_token_id: int) -> dict[str, int]:
    """Rows of the LM head in the whole batch, by what is at their positions."""
    masked = (noised_tokens(shape, machine, mask_token_id) == mask_token_id).sum(-1)
    noisier = noised_tokens(shape, machine, mask_token_id, MORE) == mask_token_id
    all_of_them = shape.batch * shape.training_length
    left = [masked - (number * masked + 2) // 3 for number in (1, 2)]  # a look of three fills a third, rounded up
    return {
        "none": 0,
        "masked": int(masked.sum()),
        "visible": all_of_them - int(masked.sum()),
        "all": all_of_them,
        "masked after a look": int(left[0].sum()),
        "masked after two": int(left[1].sum()),
        "masked in the noisier": int(noisier.sum()),
    }


METHODS = {
    "proseco": Work(((True, "visible", "masked"), (True, "none", "all"))),
    "joint": Work(
        (
            (True, "none", "masked"), (False, "masked after a look", "none"), (False, "masked after two", "none"),
            (True, "none", "all"),
        ),
        {"drafts": [{"share": [1.0, 1.0], "num_looks": 3, "positions": "confidence", "tokens": "argmax"}]},
    ),
    "backplay": Work(
        ((False, "masked in the noisier", "none"), (False, "none", "none")), {"t_max": MORE, "step": MORE - T}, lora=False
    ),
}  # fmt: skip


CONTESTANTS: dict[str, Prepare] = {
    "body": prepare_body,
    "floor": prepare_floor,
    "full logits": prepare_full,
    "reference": prepare_reference,
    "ours": prepare_ours,
}
for _name, _work in METHODS.items():
    CONTESTANTS |= {f"{_name} floor": _work.prepare_floor, _name: partial(_work.prepare, _name)}


def _trained(model: PrismModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _from_zero(parameters: list[torch.nn.Parameter], step: Callable[[], object]) -> Callable[[], object]:
    def work() -> None:
        for parameter in parameters:
            parameter.grad = None
        step()

    return work


def main() -> None:
    axes = {
        "batch": sweep_of((1, 2, 4, 8), lambda shape, size: replace(shape, batch=size)),
        "length": sweep_of((64, 128, 256, 512), lambda shape, size: replace(shape, training_length=size)),
        "vocabulary": sweep_of((8_192, 32_768, 131_072), lambda shape, size: replace(shape, vocab_size=size)),
    }

    def title(shape: Shape) -> str:
        return f"Training step, {shape.name}: batch {shape.batch}, length {shape.training_length}"

    run(__doc__, CONTESTANTS, axes, title)


if __name__ == "__main__":
    main()
