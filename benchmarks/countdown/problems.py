"""The problems of the Countdown benchmark: three numbers up to twenty, those that are held out apart.

    python -m benchmarks.countdown.problems --output adapters/countdown/data

writes `validation.txt` and `test.txt`, problems that are never trained on, and `train.txt`, problems with one solution that are
not held out: what samplers are recorded on. The same files every time.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

from prism_plugin.evaluation.tasks.countdown_numbers import Problem, draw, solutions

COUNT, LARGEST = 3, 20
TRAIN_PROBLEMS, TRAIN_SEED = 4_000, 100
HELD_OUT_FILES = {"validation.txt": (256, 101), "test.txt": (1_000, 102)}


def draw_problem(rng: random.Random) -> tuple[Problem, str]:
    """Draw a problem, and the solution that it is made by."""
    return draw(rng, COUNT, LARGEST)


def held_out_problems(count: int, seed: int, other_than: frozenset[Problem] = frozenset()) -> list[Problem]:
    """Draw different problems of those that are held out."""
    return _different(count, seed, lambda problem: problem.is_held_out and problem not in other_than)


def _different(count: int, seed: int, wanted: Callable[[Problem], bool]) -> list[Problem]:
    rng, found = random.Random(f"countdown/{seed}"), dict[Problem, None]()
    while len(found) < count:
        problem, _ = draw_problem(rng)
        if wanted(problem):
            found[problem] = None
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    files, drawn = {}, frozenset[Problem]()
    for name, (count, seed) in HELD_OUT_FILES.items():
        files[name] = held_out_problems(count, seed, drawn)
        drawn |= set(files[name])
    files["train.txt"] = _different(
        TRAIN_PROBLEMS, TRAIN_SEED, lambda problem: not problem.is_held_out and len(solutions(problem)) == 1
    )
    for name, problems in files.items():
        (output / name).write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")


if __name__ == "__main__":
    main()
