"""Sampling and training at LLaDA-8B's size on an accelerator, beside their floors and the field's loops. Nothing is downloaded.

    python -m benchmarks.gpu --minutes 12 --device cuda --dtype bfloat16 [--checkouts FOLDER] [--json]

Random weights of LLaDA-8B's shape (`--shape llada` is small, for a CPU). Every contestant has a process of its own, one after
the other, so that one model is in memory at a time; those that come first matter most, and what no longer fits into `--minutes`
is left out and named. Sampling: 448 prompt and 64 new tokens, blocks of 32, 8 looks a block; plain and with a cache. Training:
one step with LoRA. Beside them the floors and the literal reference of `benchmarks.sampling`, `benchmarks.cache` and
`benchmarks.training`; with `--checkouts`, a folder that holds the repositories LLaDA, Fast-dLLM and PRISM, the authors' own
loops. Peak memory stands beside the estimate: weights, and for a cache its keys and values. The profiler counts operators,
kernels, and what waits for the device, for each look.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import cache, loops, training
from benchmarks.contest import Machine, Prepare, Result, compete
from benchmarks.shapes import SHAPES, Shape, build_model, request
from prism_plugin.core import ConfidenceUnmasking, EvenSchedule, QualityRemasking
from prism_plugin.decoding import CachedLook
from prism_plugin.modeling.windows import cache_bytes
from prism_plugin.sampling import RemaskingSampler

GB = 1e9
# By the name under which each is reported: what it is compared with, and how it is made.
Contestants = dict[str, tuple[str, Prepare]]
# What matters most comes first.
SAMPLING: Contestants = {
    "ours, cached": ("cached floor", cache.prepare_cached),
    "cached floor": ("cached floor", cache.prepare_cached_floor),
    "ours, compiled": ("cached floor", cache.prepare_compiled),
    "ours": ("floor", cache.prepare_ours),
    "floor": ("floor", cache.prepare_floor),
    "reference": ("floor", cache.prepare_reference),
}
TRAINING: Contestants = {
    "ours": ("floor", training.prepare_ours),
    "floor": ("floor", training.prepare_floor),
    "reference": ("floor", training.prepare_reference),
}
# Operators after which the host has waited for the device.
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize")


def estimate_of(shape: Shape, machine: Machine, *, cached: bool) -> float:
    """Bytes of a model's weights, and of what a cache keeps."""
    model = build_model(shape, machine)
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    return weights + (cache_bytes(model, shape.batch, shape.length) if cached else 0)


def profiled(shape: Shape, machine: Machine, *, cached: bool) -> dict[str, float]:
    """Operators, kernels and waits for each look of `RemaskingSampler`, which takes back a token a look."""
    model = build_model(shape, machine)
    tokens = request(shape, machine, model.mask_token_id)
    sampler = RemaskingSampler(
        model, num_steps=shape.num_steps, unmasking=ConfidenceUnmasking(), remasking=QualityRemasking(),
        schedule=EvenSchedule(num_remask=1), block_length=shape.block_length, look=CachedLook() if cached else None,
    )  # fmt: skip
    sampler.infill(tokens)
    on_device = machine.device != "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities) as recorded:
        output = sampler.infill(tokens)
    looks, events = int(output.num_forward_passes.max()), recorded.key_averages()
    waits = {name: sum(one.count for one in events if one.key == name) for name in WAITS}
    kernels = sum(one.count for one in events if one.device_type != DeviceType.CPU)
    operators = sum(one.count for one in events if one.key.startswith("aten::"))
    counts = {"operators": operators, "kernels": kernels, "waits": max(waits.values())}
    return {name: count / looks for name, count in counts.items()}


def measure(contestants: Contestants, shape: Shape, machine: Machine, rounds: int, until: float) -> dict[str, Result]:
    """Let contestants work one after the other, each in a process of its own, as long as there is time."""
    found: dict[str, Result] = {}
    longest = 0.0
    for name, (_, prepare) in contestants.items():
        begun = time.monotonic()
        if begun + longest > until:
            break
        found |= compete({name: prepare}, [shape], machine, rounds)[0]
        longest = max(longest, time.monotonic() - begun)
    return found


def table_of(title: str, contestants: Contestants, found: dict[str, Result], estimates: dict[str, float]) -> Table:
    """Seconds, ratios to each one's floor, and memory, as Markdown that can be pasted."""
    table = Table(title=title, box=box.MARKDOWN, title_justify="left")
    for heading in ("contestant", "seconds", "of its floor", "peak GB", "estimate GB"):
        table.add_column(heading, justify="left" if heading == "contestant" else "right")
    for name, (floor, _) in contestants.items():
        result = found.get(name)
        if result is None:
            table.add_row(name, "no time left", "", "", "")
            continue
        ratio = f"{result.median / found[floor].median:.2f} x" if floor in found else ""
        estimate = f"{estimates[name] / GB:.2f}" if name in estimates else ""
        table.add_row(name, f"{result.median:.3f}", ratio, f"{result.peak / GB:.2f}", estimate)
    return table


def main() -> None:
    args = _arguments()
    until, machine = time.monotonic() + 60 * args.minutes, Machine(args.device, args.dtype)
    sizes = {"prompt_length": 448, "max_new_tokens": cache.FILLED * 32, "num_steps": cache.FILLED * 8}
    shape = replace(SHAPES[args.shape], batch=args.batch, **sizes)
    contestants = dict(SAMPLING)
    for name in loops.NAMES if args.checkouts is not None else ():
        loops.module_of(name, args.checkouts)  # what is missing is said before any work
        beside = "cached floor" if name == "Fast-dLLM" else "floor"
        contestants[f"{name}'s own"] = (beside, partial(loops.prepare, name, args.checkouts))
    sampled = measure(contestants, shape, machine, args.rounds, until)
    trained = measure(TRAINING, replace(shape, batch=1), machine, args.rounds, until)
    estimates, profiles = {}, {}
    for name in ("ours", "ours, cached"):
        if time.monotonic() < until:
            estimates[name] = estimate_of(shape, machine, cached="cached" in name)
        if time.monotonic() < until:
            profiles[name] = profiled(shape, machine, cached="cached" in name)
    if args.json:
        timed = {"sampling": sampled, "training": trained}
        written = {kind: {name: vars(one) | {"median": one.median} for name, one in of.items()} for kind, of in timed.items()}
        print(json.dumps({"machine": vars(machine), **written, "estimates": estimates, "looks": profiles}))
        return
    console = Console(width=140)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    of_sampling, of_training = (f"{shape.name}, batch {count}, {device}, {machine.dtype}" for count in (shape.batch, 1))
    console.print(table_of(f"Sampling, {of_sampling}", contestants, sampled, estimates))
    console.print(table_of(f"Training, {of_training}", TRAINING, trained, {}))
    for name, counts in profiles.items():
        console.print(f"{name}: " + ", ".join(f"{count:.1f} {what}" for what, count in counts.items()) + " a look")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12, help="time for all of it (default: %(default)s)")
    parser.add_argument("--shape", choices=["llada-8b", "llada"], default="llada-8b", help="sizes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="rows (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds after one to warm up (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="where to run (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the backbone (default: %(default)s)")
    parser.add_argument("--checkouts", type=Path, help="folder with the repositories LLaDA and Fast-dLLM, to measure them too")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    args = parser.parse_args()
    if min(args.minutes, args.rounds, args.batch) <= 0:
        sys.exit(f"`--minutes`, `--rounds` and `--batch` must be above 0, found {args.minutes}, {args.rounds}, {args.batch}.")
    if args.device != "cpu" and not torch.accelerator.is_available():
        sys.exit(f"`--device {args.device}` needs an accelerator, and torch sees none; give `--device cpu --shape llada`.")
    return args


if __name__ == "__main__":
    main()
