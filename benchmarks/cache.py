"""What a cache between looks saves, next to the least that looks with and without one can cost.

    python -m benchmarks.cache [--looks 8 16 32] [--batch 1] [--checkouts FOLDER]

A LLaDA-shaped random model, 64 prompt and 960 new tokens, blocks of 32; only the first two blocks are filled, since all cost
the same. Nothing is taken back, and the temperature is 0. `floor`: the transformer on the whole canvas at each look, and the
LM head's product on the rows that have to be read. `cached floor`: the whole once a block, then the block alone against a
cache of transformers' own kind, and the same rows. `ours`, `cached`, `compiled`: `RemaskingSampler` with a plain look, with
`CachedLook`, and with its windows compiled. `reference`: the field's way without a cache. With `--checkouts`, a folder that
holds Fast-dLLM's repository, its `generate_with_dual_cache` and ours fill the same canvas with its model, one row at a time
and, ours, all at once; the tokens are compared.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import field, loops
from benchmarks.contest import Machine, Prepare, Result, compete
from benchmarks.shapes import SHAPES, Shape, blocks, build_model, request
from prism_plugin.backbones.modes import evaluation_mode
from prism_plugin.decoding import CachedLook, Look
from prism_plugin.sampling import RemaskingSampler

FILLED = 2
SHAPE = replace(SHAPES["llada"], name="llada, 64 + 960", batch=1, max_new_tokens=960)


def looks_of(shape: Shape, count: int) -> list[tuple[bool, int]]:
    """Of each look at the first blocks: whether it is the block's first, and the masked positions before it."""
    total = shape.block_length or shape.max_new_tokens
    steps = shape.num_steps * total // shape.max_new_tokens
    return [(step == 0, shape.batch * (total - -(-step * total // steps))) for step in range(steps)] * count


def fill(sampler: RemaskingSampler, tokens: Tensor, count: int) -> Tensor:
    """Fill the first blocks of a canvas, and leave the others."""
    canvas = sampler.lay_infill(tokens)
    loop = sampler.loop(canvas, watched=False)
    with evaluation_mode(sampler.model):
        state = loop.begin(canvas)
        while int(state.block.min()) < count:
            state = loop.advance(state).state
    return state.tokens


def _prepare(look: Look | None) -> Prepare:
    def prepare(shape: Shape, machine: Machine) -> Callable[[], object]:
        model = build_model(shape, machine)
        tokens = request(shape, machine, model.mask_token_id)
        sampler = RemaskingSampler(model, num_steps=shape.num_steps, block_length=shape.block_length, look=look)
        return lambda: fill(sampler, tokens, FILLED)

    return prepare


def prepare_ours(shape: Shape, machine: Machine) -> Callable[[], object]:
    """`RemaskingSampler`."""
    return _prepare(None)(shape, machine)


def prepare_cached(shape: Shape, machine: Machine) -> Callable[[], object]:
    """`RemaskingSampler` with a cache."""
    return _prepare(CachedLook())(shape, machine)


def prepare_compiled(shape: Shape, machine: Machine) -> Callable[[], object]:
    """`RemaskingSampler` with a cache, whose windows are compiled."""
    return _prepare(CachedLook(widths=(shape.block_length or shape.max_new_tokens,), compile_mode="default"))(shape, machine)


def prepare_reference(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The field's way."""
    model = build_model(shape, machine)
    tokens = request(shape, machine, model.mask_token_id)
    where = blocks(shape, tokens, model.mask_token_id)
    steps = shape.num_steps * FILLED // len(where)
    settings = {"mask_token_id": model.mask_token_id, "num_steps": steps, "num_remask": 0}
    return lambda: field.sample(model.plain_backbone, model.quality_head, tokens, where[:FILLED], **settings)


def prepare_floor(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The whole canvas at each look."""
    return _floor(shape, machine, cached=False)


def prepare_cached_floor(shape: Shape, machine: Machine) -> Callable[[], object]:
    """The whole canvas once a block, and the block at each other look."""
    return _floor(shape, machine, cached=True)


def _floor(shape: Shape, machine: Machine, *, cached: bool) -> Callable[[], object]:
    model = build_model(shape, machine)
    tokens = request(shape, machine, model.mask_token_id)
    body, weight = model.plain_backbone.base_model, model.get_output_embeddings().weight
    start = shape.prompt_length
    columns = torch.arange(start, start + (shape.block_length or shape.max_new_tokens), device=tokens.device)
    window, positions = tokens[:, columns], columns.expand(shape.batch, -1)

    @torch.no_grad()
    def work() -> None:
        cache = field.ReplaceCache(model.plain_backbone.config.num_hidden_layers)
        for first, count in looks_of(shape, FILLED):
            if not cached:
                states = body(tokens).last_hidden_state
            elif first:
                states = body(tokens, past_key_values=cache.at(None), use_cache=True).last_hidden_state
            else:
                more = {"position_ids": positions, "past_key_values": cache.at(columns), "use_cache": True}
                states = body(window, **more).last_hidden_state
            _ = states.flatten(0, 1)[:count] @ weight.T

    return work


CONTESTANTS: dict[str, Prepare] = {
    "floor": prepare_floor,
    "ours": prepare_ours,
    "reference": prepare_reference,
    "cached floor": prepare_cached_floor,
    "cached": prepare_cached,
    "compiled": prepare_compiled,
}


def table_of(title: str, found: dict[int, dict[str, Result]], clock: str) -> Table:
    """Seconds for each number of looks, and what they are of their floors, as Markdown that can be pasted."""
    table = Table(title=title, box=box.MARKDOWN, title_justify="left")
    headings = (
        "looks a block",
        *CONTESTANTS,
        "floors apart",
        "ours apart",
        "share",
        "ours of floor",
        "cached of floor",
        "compiled of floor",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for looks, results in found.items():
        seconds = {name: getattr(result, clock) for name, result in results.items()}
        floors, ours = seconds["floor"] / seconds["cached floor"], seconds["ours"] / seconds["cached"]
        apart = (f"{floors:.2f} x", f"{ours:.2f} x", f"{ours / floors:.2f}")
        of_floor = [seconds["ours"] / seconds["floor"]]
        of_floor += [seconds[name] / seconds["cached floor"] for name in ("cached", "compiled")]
        table.add_row(str(looks), *(f"{one:.3f}" for one in seconds.values()), *apart, *(f"{one:.2f} x" for one in of_floor))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", type=int, nargs="+", default=[8, 16, 32], help="at each block of 32 (default: 8 16 32)")
    parser.add_argument("--batch", type=int, default=SHAPE.batch, help="rows (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds after one to warm up (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to run, such as cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of the backbone, such as bfloat16 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: %(default)s)")
    parser.add_argument("--checkouts", type=Path, help="folder with Fast-dLLM's repository, to be measured beside")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    args = parser.parse_args()
    wrong = [looks for looks in args.looks if not 1 <= looks <= SHAPE.block_length]
    if wrong or min(args.batch, args.rounds, args.threads) < 1:
        sys.exit(f"`--looks` must be 1 to {SHAPE.block_length}, and the other numbers at least 1, found {vars(args)}.")
    machine = Machine(args.device, args.dtype, args.threads)
    clock = "cpu_median" if machine.device == "cpu" else "median"
    if args.checkouts is not None:
        found = loops.measure(args.checkouts, machine, args.looks, args.rounds)
        print(json.dumps(found) if args.json else loops.in_words(found))
        return
    num_blocks = SHAPE.max_new_tokens // SHAPE.block_length
    cases = [replace(SHAPE, batch=args.batch, num_steps=looks * num_blocks) for looks in args.looks]
    results = dict(zip(args.looks, compete(CONTESTANTS, cases, machine, args.rounds), strict=True))
    if args.json:
        print(json.dumps({looks: {name: asdict(one) for name, one in found.items()} for looks, found in results.items()}))
        return
    title = f"{SHAPE.name}, batch {args.batch}, {FILLED} blocks, {machine.device}, {machine.dtype}, seconds"
    Console(width=140).print(table_of(title, results, clock))


if __name__ == "__main__":
    main()
