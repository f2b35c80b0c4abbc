"""Compare samplers on Sudoku puzzles at equal forward passes, and the quality of tokens with its free proxies."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.evaluation.tasks import sudoku
from prism_plugin.modeling import PrismModel
from prism_plugin.parsing_yaml import read_yaml
from prism_plugin.reader import fits, naming
from prism_plugin.sampling import RemaskingSampler, SamplerSettings
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.types import TokenIds

BATCH_SIZE = 256
PRESETS = ("random", "remdm-conf", "prism", "confidence", "threshold", "prism-confidence")

Settings = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Preset -> number of steps it was tuned for -> settings."""


@dataclass(frozen=True)
class PresetResult:
    """One row of the table.

    Attributes:
        preset: Name of the sampler preset.
        success: Share of puzzles solved, in [0, 1].
        success_stderr: Its standard error over puzzles, binomial.
        cell_accuracy: Share of blanks filled with the solution's digit, over puzzles with one solution; None without any.
        num_forward_passes: Mean per puzzle.
        seconds: Wall-clock time of the preset.
        settings: What the preset was run with, beyond its defaults.
    """

    preset: str
    success: float
    success_stderr: float
    cell_accuracy: float | None
    num_forward_passes: float
    seconds: float
    settings: dict[str, Any]


@dataclass(frozen=True)
class Puzzles:
    """Puzzles with what is needed to judge an answer; `unique` marks those with one solution, [count]."""

    puzzles: TokenIds
    solutions: TokenIds
    unique: torch.Tensor

    @classmethod
    def solve(cls, puzzles: TokenIds) -> "Puzzles":
        """Solve puzzles by search.

        Raises:
            DataFormatError: If one has no solution; names it.
        """
        found = [sudoku.solve(puzzle.tolist()) for puzzle in puzzles]
        for puzzle, solutions in zip(puzzles, found, strict=True):
            if not solutions:
                raise DataFormatError(f"a puzzle must have a solution, found none for {sudoku.format_grid(puzzle)}.")
        return cls(
            puzzles=puzzles,
            solutions=torch.tensor([solutions[0] for solutions in found]),
            unique=torch.tensor([len(solutions) == 1 for solutions in found]),
        )


def rows_with_solutions(puzzles: TokenIds) -> list[dict[str, Any]]:
    """Write puzzles as raw rows of their solutions, in which the clues may not be masked.

    Raises:
        DataFormatError: If one has no solution, or several, so that a right cell could count as wrong; names it.
    """
    solved = Puzzles.solve(puzzles)
    if not solved.unique.all():
        several = sudoku.format_grid(puzzles[~solved.unique][0])
        raise DataFormatError(f"a puzzle must have one solution for its cells to be judged, found several for {several}.")
    blanks = ~sudoku.clue_mask(puzzles)
    return [
        {"input_ids": solution.tolist(), "maskable": blank.tolist()}
        for solution, blank in zip(solved.solutions, blanks, strict=True)
    ]


def read_settings(path: Path) -> Settings:
    """Read tuned settings: YAML of preset -> num_steps -> settings.

    Raises:
        ConfigurationError: If the file does not have that form, or a setting is of another type or out of range.
        UnknownNameError: If a preset is unknown.
        UnknownKeyError: If a preset has no such setting.
    """
    stored = read_yaml(path, "The settings")
    if not fits(stored, Settings) or not all(stored.values()):
        raise ConfigurationError(f"{path} must map presets to numbers of steps to settings, found {str(stored)[:80]!r}.")
    for preset, by_steps in stored.items():
        for num_steps, settings in by_steps.items():
            with naming(f"{path}, {preset}, {num_steps}"):
                SamplerSettings(num_steps=num_steps, **preset_settings(preset, settings))
    return stored


def require_sudoku_model(model: PrismModel) -> None:
    """Check that a model speaks Sudoku's tokens.

    Raises:
        ConfigurationError: If its vocabulary or its mask token is another.
    """
    if not is_sudoku_model(model):
        raise ConfigurationError(
            f"The adapter must be of a Sudoku model, with {sudoku.VOCAB_SIZE} tokens and mask token {sudoku.MASK_TOKEN_ID}, "
            f"found {_vocab_size(model)} tokens and mask token {model.mask_token_id}; use one such as "
            "adapters/sudoku-9x9/weights."
        )


def is_sudoku_model(model: PrismModel) -> bool:
    """Say whether a model's vocabulary and mask token are Sudoku's."""
    return _vocab_size(model) == sudoku.VOCAB_SIZE and model.mask_token_id == sudoku.MASK_TOKEN_ID


def _vocab_size(model: PrismModel) -> int:
    return model.get_input_embeddings().weight.shape[0]


def settings_for(settings: Settings, preset: str, num_steps: int) -> dict[str, Any]:
    """Pick the settings tuned for the nearest number of steps, the smaller of two; none for a preset that was not tuned."""
    by_steps = settings.get(preset)
    if not by_steps:
        return {}
    return dict(by_steps[min(by_steps, key=lambda tuned: (abs(tuned - num_steps), tuned))])


def make_samplers(
    model: PrismModel, presets: Sequence[str], num_steps: int, settings: Settings
) -> dict[str, tuple[RemaskingSampler, dict[str, Any]]]:
    """Build the sampler of each preset, so that every mistake in a setting is found before any work."""
    chosen = {preset: settings_for(settings, preset, num_steps) for preset in presets}
    return {
        preset: (RemaskingSampler(model, num_steps=num_steps, **preset_settings(preset, own)), own)
        for preset, own in chosen.items()
    }


def solve_with(sampler: RemaskingSampler, puzzles: TokenIds, seed: int, **request: Any) -> tuple[TokenIds, torch.Tensor]:
    """Fill puzzles. Puzzle `i` depends on (`seed`, `i`) alone, not on the others or on the batch.

    Returns:
        The filled grids and the forward passes of each, [count].
    """
    grids, passes = [], []
    for start in range(0, len(puzzles), BATCH_SIZE):
        batch = puzzles[start : start + BATCH_SIZE]
        rows = generators(seed, start, len(batch))
        output = sampler.infill(batch.to(sampler.model.device), generator=rows, **request)
        grids.append(output.sequences.cpu())
        passes.append(output.num_forward_passes.cpu())
    return torch.cat(grids), torch.cat(passes)


def generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """Make a generator for each of `count` puzzles from number `first` on; each depends on (`seed`, its number) alone."""
    return [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(first, first + count)]


def evaluate_presets(
    model: PrismModel,
    puzzles: Puzzles,
    presets: Sequence[str],
    *,
    num_steps: int,
    seed: int = 0,
    settings: Settings | None = None,
    on_step: Callable[[str], None] | None = None,
) -> list[PresetResult]:
    """Solve the same puzzles with each preset, in turn.

    Args:
        model: Backbone with a quality head.
        puzzles: Solved puzzles.
        presets: Names of presets.
        num_steps: Forward passes that each may use, at most, per puzzle.
        seed: Of the samplers' draws.
        settings: Tuned settings; see `settings_for`.
        on_step: Called with the preset's name after each forward of a batch.

    Raises:
        UnknownNameError, UnknownKeyError, ConfigurationError: If a preset or a setting of it is wrong, before any work.
    """
    results = []
    for preset, (sampler, own) in make_samplers(model, presets, num_steps, settings or {}).items():
        began = time.perf_counter()
        notify = None if on_step is None else lambda _record, name=preset: on_step(name)
        grids, passes = solve_with(sampler, puzzles.puzzles, seed, on_step=notify)
        seconds = time.perf_counter() - began
        success = sudoku.is_solved(grids, puzzles.puzzles).double().mean().item()
        results.append(
            PresetResult(
                preset=preset,
                success=success,
                success_stderr=math.sqrt(success * (1 - success) / len(grids)),
                cell_accuracy=_cell_accuracy(grids, puzzles),
                num_forward_passes=passes.double().mean().item(),
                seconds=seconds,
                settings=own,
            )
        )
    return results


def _cell_accuracy(grids: TokenIds, puzzles: Puzzles) -> float | None:
    judged = ~sudoku.clue_mask(puzzles.puzzles) & puzzles.unique.unsqueeze(-1)
    if not judged.any():
        return None
    return (grids == puzzles.solutions)[judged].double().mean().item()


def to_json(results: Sequence[PresetResult], *, puzzles: int, num_steps: int) -> dict[str, Any]:
    """Write results as the object that `eval --json` and `demo --json` print."""
    return {"task": "sudoku", "puzzles": puzzles, "num_steps": num_steps, "rows": [asdict(result) for result in results]}
