"""How long sampling takes, and how much memory, next to the least that it can and to how the field does it.

    python -m benchmarks.sampling [--shape llada] [--sweep] [--device cuda --dtype bfloat16]

All make the same forward passes at temperature 0. `body`: the transformer without its LM head. `floor`: the body and the LM
head's matrix product on the rows that have to be read, those of the masks in the active block. `head`: the quality head alone.
`full logits`: the backbone as it is. `reference`: the field's way (`benchmarks/field.py`). `ours`: `RemaskingSampler`. The last
two take back a token a step.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks import field
from benchmarks.contest import Machine, Prepare
from benchmarks.report import run, sweep_of
from benchmarks.shapes import Shape, blocks, build_model, request
from prism_plugin.core import ConfidenceUnmasking, EvenSchedule, QualityRemasking
from prism_plugin.sampling import RemaskingSampler

NUM_REMASK = 1


def rows_needed(shape: Shape) -> list[int]:
    """Masked positions of the active block before each forward pass, over the batch."""
    num_blocks = 1 if shape.block_length is None else shape.max_new_tokens // shape.block_length
    total, steps = shape.max_new_tokens // num_blocks, shape.num_steps // num_blocks
    return [shape.batch * (total - -(-step * total // steps)) for step in range(steps)] * num_blocks


def prepare_body(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The transformer alone; its LM head is thrown away."""
    model = build_model(shape, machine)
    tokens = request(shape, machine, model.mask_token_id)
    body = model.plain_backbone.base_model
    del model
    return _forwards(shape, lambda _: body(tokens))


def prepare_floor(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The transformer, and the LM head's weight times the hidden states that have to be read."""
    model = build_model(shape, machine)
    tokens = request(shape, machine, model.mask_token_id)
    body, weight = model.plain_backbone.base_model, model.get_output_embeddings().weight

    def look(count: int) -> object:
        return body(tokens).last_hidden_state.flatten(0, 1)[:count] @ weight.T

    return _forwards(shape, look)


def prepare_head(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The quality head alone, at every position of every look."""
    model = build_model(shape, machine)
    batch, length = request(shape, machine, model.mask_token_id).shape
    width = model.prism_config.backbone_hidden_size
    hidden_states = torch.randn(batch, length, width, device=machine.device).to(getattr(torch, machine.dtype))
    return _forwards(shape, lambda _: model.quality_head(hidden_states))


def prepare_full(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The backbone as it is: logits of every position."""
    model = build_model(shape, machine)
    tokens = request(shape, machine, model.mask_token_id)
    return _forwards(shape, lambda _: model.plain_backbone(tokens))


def prepare_reference(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The field's way."""
    model = build_model(shape, machine)
    mask = model.mask_token_id
    tokens = request(shape, machine, mask)
    where = blocks(shape, tokens, mask)
    settings = {"mask_token_id": mask, "num_steps": shape.num_steps, "num_remask": NUM_REMASK}
    return lambda: field.sample(model.plain_backbone, model.quality_head, tokens, where, **settings)


def prepare_ours(shape: Shape, machine: Machine) -> Callable[[], object]:
    """`RemaskingSampler`."""
    model = build_model(shape, machine)
    tokens = request(shape, machine, model.mask_token_id)
    sampler = RemaskingSampler(
        model,
        num_steps=shape.num_steps,
        unmasking=ConfidenceUnmasking(),
        remasking=QualityRemasking(),
        schedule=EvenSchedule(num_remask=NUM_REMASK),
        block_length=shape.block_length,
    )
    return lambda: sampler.infill(tokens)


CONTESTANTS: dict[str, Prepare] = {
    "body": prepare_body,
    "floor": prepare_floor,
    "head": prepare_head,
    "full logits": prepare_full,
    "reference": prepare_reference,
    "ours": prepare_ours,
}


def _forwards(shape: Shape, look: Callable[[int], object]) -> Callable[[], object]:
    @torch.no_grad()
    def work() -> None:
        for count in rows_needed(shape):
            look(count)

    return work


def main() -> None:
    axes = {
        "batch": sweep_of((1, 2, 4, 8), lambda shape, size: replace(shape, batch=size)),
        "new tokens": sweep_of(
            (64, 128, 256, 512), lambda shape, size: replace(shape, max_new_tokens=size, num_steps=size // 4)
        ),
        "vocabulary": sweep_of((8_192, 32_768, 131_072), lambda shape, size: replace(shape, vocab_size=size)),
        "block": sweep_of((16, 32, 64), lambda shape, size: replace(shape, block_length=size)),
    }

    def title(shape: Shape) -> str:
        return f"Sampling, {shape.name}: batch {shape.batch}, {shape.num_steps} forward passes"

    run(__doc__, CONTESTANTS, axes, title)


if __name__ == "__main__":
    main()
