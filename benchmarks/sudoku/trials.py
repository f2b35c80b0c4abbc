"""Runs of one preset on many puzzles, logged one JSON line each, so that a run that was cut off goes on where it stood."""

import json
import time
from pathlib import Path
from typing import Any

from prism_plugin.evaluation.compare import answer_rows
from prism_plugin.evaluation.tasks import Sudoku
from prism_plugin.evaluation.tasks.sudoku import Puzzle
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler

FOLDER = Path(__file__).parents[2] / "adapters" / "sudoku-9x9"
BUDGETS = (17, 26, 51)
# A redraft uses its steps on hard puzzles alone, so that it may be allowed more than the budget and still stay within it in
# the mean, as `threshold` does.
CAPS = {"redraft": (*BUDGETS, 102, 204), "prism-redraft": (*BUDGETS, 102, 204)}


def caps_of(preset: str) -> tuple[int, ...]:
    """Numbers of steps with which a preset is run."""
    return CAPS.get(preset, BUDGETS)


class Log:
    """Trials by what was asked: preset, forward passes, seed and settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self.records = [json.loads(line) for line in lines if line.endswith("}")]  # a cut-off line is run again
        path.parent.mkdir(parents=True, exist_ok=True)

    def find(self, **asked: Any) -> dict[str, Any] | None:
        """Find a record that has these values."""
        return next((one for one in self.records if all(one[key] == value for key, value in asked.items())), None)

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)
        return record


def run_trial(
    log: Log, model: PrismModel, puzzles: list[Puzzle], preset: str, num_steps: int, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Solve the puzzles, or take what the log has. `solved` holds the indices of the puzzles that were."""
    asked = {"preset": preset, "num_steps": num_steps, "seed": seed, "settings": settings, "puzzles": len(puzzles)}
    known = log.find(**asked)
    if known is not None:
        return known
    sampler = RemaskingSampler.from_preset(preset, model, num_steps=num_steps, **settings)
    began = time.perf_counter()
    answers = answer_rows(Sudoku(), sampler, puzzles, seed)
    solved = answers.figures["success"].total
    record = {
        **asked,
        "success": solved.double().mean().item(),
        "num_forward_passes": answers.num_forward_passes.double().mean().item(),
        "seconds": time.perf_counter() - began,
        "solved": solved.nonzero().squeeze(-1).tolist(),
    }
    print({key: value for key, value in record.items() if key != "solved"}, flush=True)
    return log.add(record)


def needs_chance(sampler: RemaskingSampler) -> bool:
    """Say whether a sampler's answer depends on the seed."""
    by_chance = ("Random", "Remdm")
    rules = (type(sampler.unmasking).__name__, type(sampler.remasking).__name__)
    return sampler.temperature > 0 or any(rule.startswith(by_chance) for rule in rules)
