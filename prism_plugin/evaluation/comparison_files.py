"""Results of a comparison as files for programs: JSON, CSV, and the tuned settings as YAML.

The same runs give the same bytes. Seconds are never the same twice, so they have a file of their own.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from prism_plugin.evaluation.comparison_log import FORMAT_VERSION
from prism_plugin.evaluation.comparison_results import BestAcross, BestWithin, CellResult, Entry, Measured, Results, Tuned
from prism_plugin.writing import write_text

SETTINGS_FILE = "sampler.yaml"


def write_files(folder: Path, results: Results) -> None:
    """Write `results.json`, `results.csv`, `seconds.csv`, and for each task and adapter `TASK/ADAPTER/sampler.yaml`.

    Raises:
        SavingError: If one cannot be written.
    """
    write_text(folder / "results.json", json.dumps(to_json(results), indent=2, default=str) + "\n")
    write_text(folder / "results.csv", _csv(map(_flat, _lines(results))))
    write_text(folder / "seconds.csv", _csv(seconds_of(results)))
    for cell in results.cells:
        write_text(settings_file(folder, cell), yaml.safe_dump(cell.tuned_settings, sort_keys=False))


def settings_file(folder: Path, cell: CellResult) -> Path:
    """Where the tuned settings of a task with an adapter are written."""
    return folder / cell.task.name / cell.adapter / SETTINGS_FILE


def _lines(results: Results) -> Iterator[tuple[CellResult, Entry]]:
    return ((cell, entry) for cell in results.cells for entry in cell.entries)


def _name(cell: CellResult, entry: Entry) -> dict[str, Any]:
    return {"task": cell.task.name, "adapter": cell.adapter, "preset": entry.preset, "num_steps": entry.num_steps}


def _flat(line: tuple[CellResult, Entry]) -> dict[str, Any]:
    """A line of the CSV."""
    cell, entry = line
    facts = {"settings": json.dumps(entry.settings), "reads_head": entry.reads_head, "seeds": len(entry.seeds)}
    flat = {**_name(cell, entry), **facts, "rows": cell.rows["test"]}
    for name in cell.task.task.figures:
        estimate = entry.test.estimate(name)
        flat |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
    flat |= {"num_forward_passes": entry.test.forwards, "num_positions": entry.test.positions}
    of_validation = {f"validation_{cell.first}": entry.validation.estimate(cell.first).value}
    return {**flat, **of_validation, "validation_num_forward_passes": entry.validation.forwards}


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """With the columns of all rows; tasks have figures of their own."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def to_json(results: Results) -> dict[str, Any]:
    """Write results as the object that `results.json` holds."""
    across = {task: [_across(one) for one in found] for task, found in results.across.items()}
    cells = [_cell(cell) for cell in results.cells]
    more = {"best_across_adapters": across} if across else {}
    return {"format_version": FORMAT_VERSION, "limit": results.limit, "comparisons": cells, **more}


def seconds_of(results: Results) -> list[dict[str, Any]]:
    """The mean wall-clock time of a run of each line, over all test rows."""
    return [{**_name(cell, entry), "seconds": entry.test.seconds} for cell, entry in _lines(results)]


def _cell(cell: CellResult) -> dict[str, Any]:
    return {
        "task": cell.task.name,
        "adapter": cell.adapter,
        "of_task": cell.task.section.task,
        "rows_are": cell.task.task.rows_are,
        "rows": dict(cell.rows),
        "presets": [_entry(cell, entry) for entry in cell.entries],
        "differences": [
            {
                "preset": one.preset,
                "minus": one.minus,
                "num_steps": one.num_steps,
                "figures": {name: asdict(estimate) for name, estimate in one.figures.items()},
            }
            for one in cell.differences
        ],
        "best_within": [_best(one) for one in cell.best],
        "trials": [{**_tuned(trial), "validation": _measured(cell, trial.validation)} for trial in cell.trials],
    }


def _tuned(trial: Tuned) -> dict[str, Any]:
    return {"preset": trial.preset, "num_steps": trial.num_steps, "settings": dict(trial.settings)}


def _entry(cell: CellResult, entry: Entry) -> dict[str, Any]:
    measured = {name: _measured(cell, getattr(entry, name)) for name in ("validation", "test")}
    return {**_tuned(entry), "reads_head": entry.reads_head, "seeds": list(entry.seeds), **measured}


def _measured(cell: CellResult, measured: Measured) -> dict[str, Any]:
    return {
        "figures": {name: asdict(measured.estimate(name)) for name in cell.task.task.figures},
        "num_forward_passes": measured.forwards,
        "num_positions": measured.positions,
    }


def _across(one: BestAcross) -> dict[str, Any]:
    chosen = {
        "with_head": (one.adapters[0], one.with_head),
        "without": (one.adapters[1], one.without),
        "reaching": one.reaching,
    }
    named = {
        key: None if pair is None else {"adapter": pair[0], "preset": pair[1].preset, "num_steps": pair[1].num_steps}
        for key, pair in chosen.items()
    }
    facts = {"difference": asdict(one.difference), "fewer_forwards": one.fewer_forwards}
    return {"mean_forward_passes": one.budget, **named, **facts}


def _best(one: BestWithin) -> dict[str, Any]:
    groups = {"with_head": one.with_head, "without": one.without}
    named = {key: {"preset": entry.preset, "num_steps": entry.num_steps} for key, entry in groups.items()}
    return {"mean_forward_passes": one.budget, **named, "difference": asdict(one.difference)}
