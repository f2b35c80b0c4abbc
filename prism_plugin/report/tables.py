"""Results as tables for people."""

from collections.abc import Sequence

from rich.table import Table

from prism_plugin.evaluation.tasks.sudoku_eval import PresetResult


def sudoku_table(results: Sequence[PresetResult], *, puzzles: int, num_steps: int) -> Table:
    """Lay out the comparison of presets, the best success in bold."""
    table = Table(title=f"{puzzles} puzzles, at most {num_steps} forward passes each")
    table.add_column("preset")
    for heading in ("solved", "± s.e.", "cells right", "forwards", "seconds"):
        table.add_column(heading, justify="right")
    best = max(result.success for result in results)
    for result in results:
        cells = "-" if result.cell_accuracy is None else f"{result.cell_accuracy:.1%}"
        table.add_row(
            result.preset, f"{result.success:.1%}", f"{result.success_stderr:.1%}", cells,
            f"{result.num_forward_passes:.1f}", f"{result.seconds:.1f}", style="bold" if result.success == best else None,
        )  # fmt: skip
    return table
