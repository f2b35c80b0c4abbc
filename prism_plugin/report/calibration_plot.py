"""Reliability diagrams and histograms of the quality, as a picture; the only file that needs matplotlib."""

import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.calibration import Bin, Group, QualityFigures
from prism_plugin.writing import require_place, staged_files

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

ENDINGS = (".png", ".svg")
# Okabe and Ito's colours, which differ for colour-blind eyes too; and a marker each, for prints without colour.
_STYLES: dict[str, dict[str, Any]] = {
    "quality": {"color": "#0072B2", "marker": "o", "linewidth": 2.2, "zorder": 4},
    "mean_quality": {"color": "#56B4E9", "marker": "P", "linewidth": 1.6, "zorder": 3},
    "visible_confidence": {"color": "#E69F00", "marker": "s", "linewidth": 1.2},
    "commit_confidence": {"color": "#009E73", "marker": "^", "linewidth": 1.2},
    "mean_confidence": {"color": "#CC79A7", "marker": "D", "linewidth": 1.2},
    "age": {"color": "#999999", "marker": "v", "linewidth": 1.2},
}
_RIGHT, _WRONG, _GREY = "#56B4E9", "#D55E00", "#666666"
# What stands on less is left out: 10 right tokens of 10 are likely enough at 75 % too.
_FEWEST_TOKENS, _FEWEST_STATES = 20, 5


def check_plot_file(path: Path) -> None:
    """Check that a picture can be written, before anything is computed for it.

    Raises:
        ConfigurationError: If the ending is not one of `ENDINGS`, or matplotlib is not installed.
        SavingError: If a folder is in the way, or the folder that it belongs to is none or cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ConfigurationError(f"A picture's file must end in {' or '.join(ENDINGS)}, found {str(path)!r}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(
            "Pictures need matplotlib, which is not installed; install it with `pip install 'prism-plugin[plot]'`."
        )
    require_place(path, "picture")


def plot_quality(figures: Mapping[str, QualityFigures], path: Path, *, title: str) -> None:
    """Draw one column for each kind of state: reliability, histogram, ranking by masks, and by look where there are several.

    Args:
        figures: By the name of the kind of state.
        path: A .png or .svg file; written beside and renamed.
        title: Of the whole picture.

    Raises:
        ConfigurationError: As `check_plot_file`.
        SavingError: If the file cannot be written; what stood there is unchanged.
    """
    check_plot_file(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heights = [3.2, 1.5, 1.9] + [1.9] * any(one.by_step is not None for one in figures.values())
    with rc_context({"font.size": 9, "axes.titlesize": 10, "svg.hashsalt": "prism_plugin"}):  # the same file every time
        figure = Figure(figsize=(5.2 * len(figures), 1.35 * sum(heights)), dpi=150, layout="constrained")
        figure.suptitle(title)
        grid = figure.subplots(len(heights), len(figures), squeeze=False, height_ratios=heights)
        for column, (name, one) in zip(grid.T, figures.items(), strict=True):
            column[0].set_title(f"{name}\n{one.tokens:,} tokens, {one.right:.1%} of them right")
            _reliability(column[0], one.reliability)
            _histogram(column[1], one.reliability["quality"])
            _ranking(column[2], one.by_masked, "share of masks in the state, %", scale=100)
            column[2].set_xlim(0, 100)
            if one.by_step is not None:
                _ranking(column[3], one.by_step, "number of the look", scale=1)
        named = _by_label(axes for row in (grid[0], *grid[2:]) for axes in row)  # histograms have a legend of their own
        free = [column[3] for column, one in zip(grid.T, figures.values(), strict=True) if len(column) == 4 and not one.by_step]
        if free:  # drafts are looked at once, so there is room below them
            free[0].set_axis_off()
            free[0].legend(list(named.values()), list(named), loc="center", frameon=False)
        else:
            figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, frameon=False)
        with staged_files(path.parent, marker=path.name) as stage:
            figure.savefig(stage / path.name, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _by_label(every: Iterable["Axes"]) -> dict[str, "Artist"]:
    """One handle for each label, whichever diagram has it: drafts have fewer scores than states, and an age no reliability."""
    return {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}


def _words(name: str) -> str:
    return name.replace("_", " ")


def _reliability(axes: "Axes", bins: Mapping[str, list[Bin]]) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="calibrated; chance")
    for name, of_score in bins.items():
        # a hole where a bin is nearly empty, and no line across it
        points = [
            (one.predicted / one.tokens, one.right / one.tokens) if one.tokens >= _FEWEST_TOKENS else (math.nan, math.nan)
            for one in of_score
        ]
        axes.plot(*zip(*points, strict=True), label=_words(name), markersize=4, clip_on=False, **_STYLES[name])
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="what the score says", ylabel="share that is right", aspect="equal")
    axes.grid(alpha=0.25)


def _histogram(axes: "Axes", bins: list[Bin]) -> None:
    edges, width = [one.low for one in bins], bins[0].high - bins[0].low
    half: dict[str, Any] = {"width": width / 2, "align": "edge", "linewidth": 0}
    axes.bar(edges, [one.right for one in bins], color=_RIGHT, label="right", **half)
    wrong = [one.tokens - one.right for one in bins]
    axes.bar([low + width / 2 for low in edges], wrong, color=_WRONG, label="wrong", **half)
    axes.set_yscale("log")
    axes.set(xlim=(0, 1), xlabel="quality", ylabel="tokens", ylim=(0.7, None))
    axes.legend(loc="upper left", frameon=False, ncols=2)


def _ranking(axes: "Axes", groups: list[Group], label: str, *, scale: float) -> None:
    axes.axhline(0.5, color=_GREY, linestyle="--", linewidth=1)
    told = [group for group in groups if group.mixed_states >= _FEWEST_STATES]
    places = [(group.low + group.high) / 2 * scale for group in told]
    for name in groups[0].scores:
        within = [group.scores[name].auroc_within for group in told]
        axes.plot(places, within, label=_words(name), markersize=4, **_STYLES[name])
    if not told:
        axes.text(0.5, 0.6, "too few states with right and wrong tokens", transform=axes.transAxes, ha="center")
    axes.set(xlabel=label, ylabel="AUROC\nwithin a state", ylim=(min(0.3, axes.get_ylim()[0]), 1))
    axes.grid(alpha=0.25)
