"""Checkpoint folders that are whole or not there: built beside, flushed, renamed.

A folder of ours named `checkpoint-N` is whole, because the name is given last. What is being built or taken away is named
differently, so that neither Trainer nor we ever resume from it. What else begins with that name, or has it and is not of
our making, belongs to somebody: it is never read, and never taken away.
"""

import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_callback import TrainerState

from prism_plugin.errors import PrismError, SavingError, StoredStateError
from prism_plugin.modeling.config_file import CONFIG_FILE, HEAD_FILE
from prism_plugin.writing import flush

STATE_FILE = "trainer_state.json"
_BUILDING, _REMOVED = ".building-", "-removed"
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


def building_folder(run_dir: Path, name: str) -> Path:
    """Where the folder `name` is built before it gets its name."""
    return run_dir / f"{_BUILDING}{name}"


def start_building(run_dir: Path, name: str) -> None:
    """Clear away what a killed run left, and make an empty folder to build `name` in."""
    clear_leftovers(run_dir)
    building_folder(run_dir, name).mkdir(parents=True)


def clear_leftovers(run_dir: Path) -> None:
    """Clear away what was being built, or taken away, when a run was killed."""
    for leftover in run_dir.glob(f"{_BUILDING}*"):
        named = _NAME.fullmatch(leftover.name.removeprefix(_BUILDING).removesuffix(_REMOVED))
        if named and leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)


def finish_building(run_dir: Path, name: str) -> None:
    """Flush everything in the folder to the disk and give it its name; an older checkpoint of that name goes away."""
    building = building_folder(run_dir, name)
    for path in (*building.rglob("*"), building):
        flush(path)
    if _is_ours(run_dir / name):
        remove(run_dir / name)
    building.rename(run_dir / name)
    flush(run_dir)


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away; killed half-way, it no longer has the name of a whole one. Of a link, the link goes."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    doomed = building_folder(checkpoint.parent, f"{checkpoint.name}{_REMOVED}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_oldest(run_dir: Path, limit: int | None, *, newest: int, best: int | None) -> None:
    """Keep at most `limit` checkpoints (all when None): the newest and the best stay, the oldest of the others go.

    Args:
        run_dir: Where they are.
        limit: How many to keep.
        newest: Step of the one that was just saved. Those of later steps are of an older run.
        best: Step of the best one, if that is known.
    """
    if not limit or limit < 1:
        return
    found = [one for one in own_checkpoints(run_dir) if _is_whole(one)]
    others = [one for one in found if _step(one) not in (newest, best)]
    others.sort(key=lambda one: (_step(one) < newest, _step(one)))
    for one in others[: max(0, len(found) - max(limit, len(found) - len(others)))]:
        remove(one)


def own_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints that a run wrote here, by step, whole or not. A link to one is not among them."""
    return sorted((one for one in _named(run_dir) if _is_ours(one) and not one.is_symlink()), key=_step)


def require_free_names(run_dir: Path, *, links: bool) -> None:
    """Check that nothing of others has a name that a checkpoint may need.

    Args:
        run_dir: Where checkpoints will be.
        links: Whether links to checkpoints of ours may stay.

    Raises:
        SavingError: If something has.
    """
    taken = sorted(one.name for one in _named(run_dir) if not (_is_ours(one) and (links or not one.is_symlink())))
    if taken:
        raise SavingError(
            f"`output_dir` {run_dir} holds {', '.join(taken)}, which no run of prism_plugin wrote there, under a name that a "
            "checkpoint may need; move it away, or choose another folder."
        )


def best_checkpoint(state: TrainerState, run_dir: Path) -> Path:
    """The best checkpoint: where the run is now, or else where it was when the state was written."""
    beside = run_dir / f"checkpoint-{state.best_global_step}"
    return beside if beside.is_dir() else Path(state.best_model_checkpoint)


def _named(run_dir: Path) -> list[Path]:
    return [one for one in run_dir.glob("checkpoint-*") if _NAME.fullmatch(one.name)]


def _is_ours(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or (path / HEAD_FILE).is_file()


def _is_whole(path: Path) -> bool:
    return (path / STATE_FILE).is_file() and (path / CONFIG_FILE).is_file()


def _step(checkpoint: Path) -> int:
    return int(_NAME.fullmatch(checkpoint.name)[1])


@contextmanager
def reading(checkpoint: str | Path) -> Iterator[None]:
    """What is raised by a damaged file of a checkpoint becomes one sentence.

    Raises:
        StoredStateError: If a file of the run's state cannot be read.
        PrismError: What was refused within, as it came.
    """
    try:
        yield
    except PrismError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise StoredStateError(
            f"{checkpoint} must hold the state of a run, but it cannot be read ({cause}); remove that folder to go on from an "
            "older checkpoint, or start over."
        ) from error


def last_checkpoint(run_dir: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None."""
    return max((one for one in _named(run_dir) if _is_whole(one)), key=_step, default=None)
