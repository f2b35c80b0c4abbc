"""Checkpoint folders that are whole or not there: built beside, flushed, renamed.

A folder named `checkpoint-N` is whole, because the name is given last. What is being built or taken away is named
differently, so that neither Trainer nor we ever resume from it.
"""

import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import sort_checkpoints

from prism_plugin.errors import PrismError, StoredStateError
from prism_plugin.modeling.staging import flush

STATE_FILE = "trainer_state.json"
_BUILDING = ".building-"


def building_folder(run_dir: Path, name: str) -> Path:
    """Where the folder `name` is built before it gets its name."""
    return run_dir / f"{_BUILDING}{name}"


def start_building(run_dir: Path, name: str) -> None:
    """Clear away what a killed run left, and make an empty folder to build `name` in."""
    for leftover in run_dir.glob(f"{_BUILDING}*"):
        shutil.rmtree(leftover)
    building_folder(run_dir, name).mkdir(parents=True)


def finish_building(run_dir: Path, name: str) -> None:
    """Flush everything in the folder to the disk and give it its name; an older folder of that name goes away."""
    building = building_folder(run_dir, name)
    for path in (*building.rglob("*"), building):
        flush(path)
    if (run_dir / name).exists():
        remove(run_dir / name)
    building.rename(run_dir / name)
    flush(run_dir)


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away; killed half-way, it no longer has the name of a whole one."""
    doomed = building_folder(checkpoint.parent, f"{checkpoint.name}-removed")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_oldest(run_dir: Path, limit: int | None, best: str | None) -> None:
    """Keep at most `limit` checkpoints (all when None): the newest and the best stay, the oldest of the others go."""
    if not limit or limit < 1:
        return
    checkpoints = [Path(path) for path in sort_checkpoints(str(run_dir))]
    kept = {checkpoints[-1]} | ({Path(best)} if best else set()) if checkpoints else set()
    others = [path for path in checkpoints if path not in kept]
    for path in others[: max(0, len(checkpoints) - max(limit, len(kept)))]:
        remove(path)


@contextmanager
def reading(checkpoint: str | Path) -> Iterator[None]:
    """What is raised by a damaged file of a checkpoint becomes one sentence.

    Raises:
        StoredStateError: If a file of the run's state cannot be read.
    """
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        if isinstance(error, PrismError):
            raise
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise StoredStateError(
            f"{checkpoint} must hold the state of a run, but it cannot be read ({cause}); remove that folder to go on from an "
            "older checkpoint, or start over."
        ) from error


def last_checkpoint(run_dir: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None."""
    whole = [Path(path) for path in sort_checkpoints(str(run_dir)) if (Path(path) / STATE_FILE).is_file()]
    return whole[-1] if whole else None
