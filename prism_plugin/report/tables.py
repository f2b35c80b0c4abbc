"""Results as tables for people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE
from rich.table import Table
from rich.text import Text

from prism_plugin.backbones import Check
from prism_plugin.evaluation.calibration import ChosenThreshold, FittedScaling, Group, QualityFigures
from prism_plugin.evaluation.compare import PresetResult
from prism_plugin.evaluation.tasks import Task


def preset_table(task: Task, results: Sequence[PresetResult], *, rows: int, num_steps: int) -> Table:
    """Lay out the comparison of presets on a task, the best in its first figure in bold."""
    first, *others = task.figures.values()
    # four figures fit into 80 characters, the width of a page that is piped, without lines between them
    box, title = None if len(others) > 2 else HEAVY_HEAD, f"{rows} {task.rows_are}, at most {num_steps} forward passes each"
    table = Table(title=title, box=box, pad_edge=box is not None)
    table.add_column("preset", overflow="fold")
    for heading in (first.text, "± s.e.", *(one.text for one in others), "forwards", "seconds"):
        table.add_column(heading, justify="right")
    values = [[result.answers.figures[name].value for name in task.figures] for result in results]
    best = max((own[0] for own in values if own[0] is not None), default=None)
    for result, own in zip(results, values, strict=True):
        figures = [_formed(value, heading.form) for value, heading in zip(own, task.figures.values(), strict=True)]
        stderr = _formed(result.answers.figures[next(iter(task.figures))].stderr, first.form)
        costs = f"{result.num_forward_passes:.1f}", f"{result.seconds:.1f}"
        style = "bold" if own[0] is not None and own[0] == best else None
        table.add_row(result.preset, figures[0], stderr, *figures[1:], *costs, style=style)
    return table


def _formed(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def recording_table(found: Mapping[str, Any]) -> Table:
    """Lay out what a recording holds: for each source, and below for each file."""
    table = Table(title=f"Recorded in {found['output']}")
    for heading in ("sampler", "steps", "rows", "filled rightly", "states"):
        table.add_column(heading, justify="left" if heading == "sampler" else "right")
    for source in found["sources"]:
        right = f"{source['right'] / source['rows']:.1%}"
        table.add_row(source["preset"], *map(str, (source["num_steps"], source["rows"], right, source["states"])))
    files = [
        f"{name}: {one['states']} states, {one['with_a_wrong_token']} with a wrong token"
        for name, one in found["files"].items()
    ]
    table.caption = "\n".join(files)
    return table


# Nine columns are what 80 characters hold, the width of a page that is piped; these stand in the table over all.
_NOT_BY_GROUP = ("mean_quality", "age")


def quality_tables(figures: QualityFigures, *, title: str) -> list[Table]:
    """Lay out figures of judged tokens: over all, by the share of masks, and by the look where there are several."""
    whole = Table(title=f"{title}: {figures.tokens} tokens in {figures.states} states, {figures.right:.1%} of them right")
    whole.add_column("score")
    for heading in ("AUROC within", "AUROC pooled", "ECE", "Brier"):
        whole.add_column(heading, justify="right")
    for name, score in figures.scores.items():
        cells = (score.auroc_within, score.auroc, score.ece, score.brier)
        whole.add_row(_words(name), *map(_figure, cells), style="bold" if name == "quality" else None)
    knows_nothing = (0.5, 0.5, 0.0, figures.right * (1 - figures.right))
    whole.add_row("share of right", *map(_figure, knows_nothing), style="dim")
    whole.caption = f"Within: over {figures.mixed_states} mixed states, with right and wrong tokens."
    what = "ECE of the quality; AUROC within the mixed states."
    masked = [f"{group.low * 100:.0f}-{group.high * 100:.0f}" for group in figures.by_masked]
    tables = [whole, _group_table("masks", masked, figures.by_masked, f"Masks in % of what can be masked; {what}")]
    if figures.by_step is not None:
        looks = [f"{group.low:g}-{group.high:g}" for group in figures.by_step]
        tables.append(_group_table("look", looks, figures.by_step, f"Looks from 1; {what}"))
    return tables


def _group_table(heading: str, labels: Sequence[str], groups: Sequence[Group], caption: str) -> Table:
    names = [name for name in groups[0].scores if name not in _NOT_BY_GROUP]
    table = Table(caption=caption, pad_edge=False)
    for one in (heading, "tokens", "right", "ECE", "mixed", *(name.removesuffix("_confidence") for name in names)):
        table.add_column(one, justify="right")
    for label, group in zip(labels, groups, strict=True):
        within = (_figure(group.scores[name].auroc_within) for name in names)
        counted = (str(group.tokens), f"{group.right:.1%}", _figure(group.scores["quality"].ece), str(group.mixed_states))
        table.add_row(label, *counted, *within)
    return table


def scaling_table(fitted: FittedScaling) -> Table:
    """Compare the head as it is with the scaled one, on the rows that were held out."""
    bias = f", bias {fitted.bias:.4g}" if fitted.bias else ""
    table = Table(title=f"Temperature {fitted.temperature:.4g}{bias}: fitted on every second row, measured on the others")
    table.add_column("quality")
    for heading in ("cross-entropy, nats", "ECE", "Brier"):
        table.add_column(heading, justify="right")
    for name, one in (("as it is", fitted.before), ("scaled", fitted.after)):
        table.add_row(name, _figure(one.cross_entropy), _figure(one.ece), _figure(one.brier))
    return table


def threshold_sentence(chosen: ChosenThreshold) -> str:
    """Say what a threshold does on the rows that it was not chosen on; in nine digits, which tell float32 numbers apart."""
    if chosen.threshold is None:
        return f"No threshold has {chosen.wanted_precision:.0%} wrong tokens below it; ask for less, or train the head further."
    if not chosen.doubted:
        below = "none of their tokens is below it, so it is not confirmed"
    else:
        below = (
            f"{chosen.doubted:.2%} of their tokens are below it, {chosen.precision:.1%} of these are wrong, and they are "
            f"{chosen.recall:.1%} of all wrong ones"
        )
    return f"quality_threshold={chosen.threshold:.9g}: chosen on every second row; on the others {below}."


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def checks_table(checks: Sequence[Check]) -> Table:
    """Lay out what probes found; what they did not run on is greyed."""
    table = Table(box=SIMPLE)
    table.add_column("check")
    table.add_column("")
    table.add_column("figure", justify="right")
    table.add_column("detail", overflow="fold")
    marks = {True: "ok", False: "FAILED", None: "-"}
    styles = {True: None, False: "bold red", None: "dim"}
    for check in checks:
        figure = "" if check.figure is None else f"{check.figure:.3g}"
        table.add_row(check.name, marks[check.ok], figure, Text(check.detail), style=styles[check.ok])
    return table


_PARTS = {
    "weights": "backbone",
    "adapter": "LoRA",
    "head": "quality head",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "activations_checkpointed": "activations, with activation checkpointing",
    "logits": "logits, gathered",
    "logits_full": "logits, if every position had a row in both looks",
    "total": "largest moment of a step",
    "total_checkpointed": "largest moment, with activation checkpointing",
}


def memory_table(memory_gb: Mapping[str, float | None]) -> Table:
    """Lay out a memory estimate, the totals in bold. They are below the sums: not all parts are alive at one time."""
    table = Table(box=SIMPLE)
    table.add_column("part")
    table.add_column("GB", justify="right")
    for name, value in memory_gb.items():
        figure = "not known" if value is None else f"{value:,.2f}"
        table.add_row(_PARTS[name], figure, style="bold" if name.startswith("total") else None)
    return table
