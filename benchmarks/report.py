"""The command line of the two benchmarks: one shape or a sweep, as a table, as JSON, and as a picture."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.contest import Machine, Prepare, Result, compete
from benchmarks.shapes import SHAPES, Shape
from prism_plugin.errors import ConfigurationError
from prism_plugin.report.calibration_plot import check_plot_file

MB = 1e6
FLOOR, REFERENCE, OURS = "floor", "reference", "ours"
# What a sweep varies, one axis at a time, and the shape that it starts from.
Axes = dict[str, tuple[tuple[int, Shape], ...]]
SWEPT = replace(
    SHAPES["llada"], name="swept", vocab_size=32_768, hidden_size=128, num_hidden_layers=4, intermediate_size=384,
    max_new_tokens=64, num_steps=16,
)  # fmt: skip


def sweep_of(values: tuple[int, ...], change: Callable[[Shape, int], Shape]) -> tuple[tuple[int, Shape], ...]:
    """The shapes of one axis, by value."""
    return tuple((value, change(SWEPT, value)) for value in values)


def run(description: str, contestants: dict[str, Prepare], axes: Axes, title: Callable[[Shape], str]) -> None:
    """Read the command line, let the contestants compete, and print.

    Args:
        description: Of the command.
        contestants: All of them; a sweep takes the floor, the reference and ours.
        axes: What a sweep varies.
        title: Says what a shape measures.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llada", help="model and sizes (default: %(default)s)")
    parser.add_argument(
        "--sweep", nargs="*", metavar="SIZE", choices=[[], *axes], help=f"vary sizes instead: {', '.join(axes)}, or all"
    )
    parser.add_argument("--picture", type=Path, help="draw the sweep into this file, .png or .svg; needs matplotlib")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds after one to warm up (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to run, such as cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of the backbone, such as bfloat16 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    args = parser.parse_args()
    machine = _machine(args)
    if args.sweep is None:
        shape = SHAPES[args.shape]
        (results,) = compete(contestants, [shape], machine, args.rounds)
        written = {"shape": asdict(shape), "results": _written(results)}
        table = result_table(f"{title(shape)}, {machine.device}, {machine.dtype}", results)
    else:
        chosen = {axis: axes[axis] for axis in (args.sweep or axes)}
        cases = [shape for points in chosen.values() for _, shape in points]
        some = {name: contestants[name] for name in (FLOOR, REFERENCE, OURS)}
        results = iter(compete(some, cases, machine, args.rounds))
        swept = {axis: {value: next(results) for value, _ in points} for axis, points in chosen.items()}
        written = {axis: {value: _written(one) for value, one in points.items()} for axis, points in swept.items()}
        # many short works on a machine that others may use: there the process's own clock is the steadier one
        clock = "cpu_median" if machine.device == "cpu" else "median"
        table = sweep_table(f"{title(SWEPT)}, {machine.device}, {machine.dtype}", swept, clock)
        if args.picture is not None:
            draw(swept, args.picture, clock)
    if args.json:
        print(json.dumps({"machine": vars(machine), **written}))
    else:
        Console(width=140).print(table)


def _machine(args: argparse.Namespace) -> Machine:
    if args.rounds < 1 or args.threads < 1:
        sys.exit(f"`--rounds` and `--threads` must be at least 1, got {args.rounds} and {args.threads}.")
    if not isinstance(getattr(torch, args.dtype, None), torch.dtype):
        sys.exit(f"`--dtype` must be a dtype of torch such as float32, got {args.dtype!r}.")
    if args.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        sys.exit("peak memory on the CPU is read from /proc, which is not here; run on Linux, or give another `--device`.")
    if args.picture is not None and args.sweep is None:
        sys.exit("`--picture` draws a sweep; add `--sweep`.")
    if args.picture is not None:
        try:
            check_plot_file(args.picture)
        except ConfigurationError as error:
            sys.exit(str(error))
    return Machine(device=args.device, dtype=args.dtype, threads=args.threads)


def result_table(title: str, results: dict[str, Result]) -> Table:
    """Seconds, ratios and memory of each contestant, as Markdown that can be pasted."""
    table = Table(title=title, box=box.MARKDOWN, title_justify="left")
    table.add_column("contestant")
    for heading in ("seconds", f"of {FLOOR}", f"{REFERENCE} takes", "CPU s", f"of {FLOOR}", "peak MB", "above MB"):
        table.add_column(heading, justify="right")
    reference = results[REFERENCE]
    for name, result in results.items():
        floor = results.get(f"{name} {FLOOR}", results.get(name) if name.endswith(f" {FLOOR}") else results[FLOOR])
        table.add_row(
            name,
            f"{result.median:.3f}",
            f"{result.median / floor.median:.2f} x",
            f"{reference.median / result.median:.1f} x",
            f"{result.cpu_median:.3f}",
            f"{result.cpu_median / floor.cpu_median:.2f} x",
            f"{result.peak / MB:.0f}",
            f"{result.above / MB:.0f}",
        )
    return table


def sweep_table(title: str, swept: dict[str, dict[int, dict[str, Result]]], clock: str) -> Table:
    """How time and memory grow with each size, as Markdown; `clock` is the property of a result that is shown."""
    table = Table(title=title, box=box.MARKDOWN, title_justify="left")
    for heading in ("size", FLOOR, OURS, f"of {FLOOR}", REFERENCE, "of ours", f"{FLOOR} MB", f"{OURS} MB", f"{REFERENCE} MB"):
        table.add_column(heading, justify="left" if heading == "size" else "right")
    for axis, points in swept.items():
        for value, results in points.items():
            floor, ours, reference = (results[name] for name in (FLOOR, OURS, REFERENCE))
            least, taken, theirs = (getattr(one, clock) for one in (floor, ours, reference))
            table.add_row(
                f"{axis} {value:,}",
                f"{least:.3f}",
                f"{taken:.3f}",
                f"{taken / least:.2f} x",
                f"{theirs:.3f}",
                f"{theirs / taken:.1f} x",
                *(f"{one.above / MB:.0f}" for one in (floor, ours, reference)),
            )
    return table


def draw(swept: dict[str, dict[int, dict[str, Result]]], path: Path, clock: str) -> None:
    """Seconds, by a property of the results, against each size, both on logarithmic scales, one panel an axis."""
    from matplotlib.figure import Figure  # not needed without a picture

    figure = Figure(figsize=(3.2 * len(swept), 3.2), layout="constrained")
    panels = figure.subplots(1, len(swept), squeeze=False)[0]
    for panel, (axis, points) in zip(panels, swept.items(), strict=True):
        for name, style in ((REFERENCE, "o-"), (OURS, "s-"), (FLOOR, "k--")):
            panel.plot(list(points), [getattr(results[name], clock) for results in points.values()], style, label=name)
        panel.set(xscale="log", yscale="log", xlabel=axis)
    panels[0].set_ylabel("seconds")
    panels[-1].legend(frameon=False)
    figure.savefig(path, dpi=150)


def _written(results: dict[str, Result]) -> dict[str, Any]:
    """All rounds, their medians, and the memory beyond what stood before."""
    return {
        name: asdict(result) | {"median": result.median, "cpu_median": result.cpu_median, "above": result.above}
        for name, result in results.items()
    }
