"""`run.json` in an `output_dir`: which recipe and data it belongs to, what may go on with it, and how to start over."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prism_plugin.errors import ConfigurationError, SavingError, StoredStateError
from prism_plugin.modeling.config_file import CONFIG_FILE
from prism_plugin.modeling.places import SAVED_FILES
from prism_plugin.modeling.strict_files import read_json, stored
from prism_plugin.reader import differing, without_version
from prism_plugin.training.checkpoints import clear_leftovers, last_checkpoint, own_checkpoints, remove, require_free_names
from prism_plugin.training.run_folder import require_run_folder, writing_in
from prism_plugin.writing import flush, remove_leftovers, write_text

RUN_FILE = "run.json"
FORMAT_VERSION = 1
CLEARING_FILE = ".clearing.json"  # there while --fresh takes an older run away
# What may differ between a run and its continuation: none of it changes a step that was taken.
_FREE = {
    "training.output_dir", "training.report_to", "training.run_name", "training.disable_tqdm", "training.save_total_limit",
    "training.log_level", "training.project", "training.dataloader_num_workers", "training.check_alignment", "data.path",
    "data.eval_path", "training.max_steps", "training.num_train_epochs", "training.save_steps", "training.save_strategy",
    "training.eval_steps", "training.eval_strategy", "training.logging_steps", "training.logging_strategy",
}  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says of a run.

    Attributes:
        recipe: What was written in the recipe and on the command line.
        num_processes: How many processes train.
        data: Fingerprint of the prepared rows.
        eval_data: Fingerprint of those to evaluate on, if any.
    """

    recipe: dict[str, Any]
    num_processes: int
    data: str
    eval_data: str | None


def require_usable(output_dir: Path, *, fresh: bool) -> None:
    """Check, before anything is loaded, that a run in this folder costs nothing of others.

    Raises:
        SavingError: If it would.
    """
    require_free_names(output_dir, links=not fresh)  # a link would outlive --fresh, and be gone on with
    if being_cleared(output_dir):
        return
    require_run_folder(output_dir, resumes=True)  # or starts over; whether it may is asked when the data is known
    file = output_dir / RUN_FILE
    if file.exists() and not holds_run(output_dir) and not {"format_version", "recipe"} <= _read(file).keys():
        raise SavingError(
            f"`output_dir` {output_dir} holds {RUN_FILE}, which prism_plugin did not write and would write over; choose "
            "another folder, or move this file away."
        )


def holds_run(output_dir: Path) -> bool:
    """Whether a folder holds a trained head, or a checkpoint that could be gone on with."""
    return last_checkpoint(output_dir) is not None or (output_dir / CONFIG_FILE).exists()


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file of ours holds; nothing where it is not there or none of ours."""
    try:
        return read_json(file)
    except StoredStateError:
        return {}


def refuse_other_run(output_dir: Path, record: RunRecord) -> None:
    """Refuse to go on with, or to write over, what another recipe or other data made.

    Raises:
        ConfigurationError: If that is what the folder holds.
    """
    file = output_dir / RUN_FILE
    if being_cleared(output_dir) or not holds_run(output_dir):
        return
    if not file.exists():
        raise ConfigurationError(
            f"{output_dir} holds a trained head but no {RUN_FILE} that says which recipe it is from; choose another "
            "`output_dir`, or write over it with --fresh."
        )
    try:
        before = stored(RunRecord, file, without_version(read_json(file), FORMAT_VERSION, source=str(file)))
    except StoredStateError as error:
        reason = str(error).rstrip(".")
        raise ConfigurationError(
            f"{file} must say which recipe made this folder, but cannot be read ({reason}); use --fresh."
        ) from error
    different = {name for name in ("num_processes", "data", "eval_data") if getattr(before, name) != getattr(record, name)}
    different |= set(differing(before.recipe, record.recipe))
    names = sorted(different - _FREE)
    if names:
        raise ConfigurationError(
            f"{output_dir} belongs to another run, which differs in {', '.join(names)}; choose another `output_dir`, or start "
            "over with --fresh, which deletes its checkpoints and its result."
        )


def begin(output_dir: Path, record: RunRecord, *, fresh: bool) -> None:
    """Write down whose run this is, when all that could be refused has been; with `fresh`, after an older run is taken away.

    Killed at any moment, this leaves the older run whole, or none of it that any verb would read.

    Args:
        output_dir: The folder, which no other process uses.
        record: What `run.json` is to hold.
        fresh: Take away checkpoints and the result that are there.

    Raises:
        SavingError: If the folder cannot be written.
    """
    with writing_in(output_dir):
        if fresh or being_cleared(output_dir):
            _clear(output_dir)
        remove_leftovers(output_dir, RUN_FILE, CLEARING_FILE)
        content = {"format_version": FORMAT_VERSION, **asdict(record)}
        write_text(output_dir / RUN_FILE, json.dumps(content, indent=2) + "\n")
        (output_dir / CLEARING_FILE).unlink(missing_ok=True)


def being_cleared(output_dir: Path) -> bool:
    """Whether a process was killed while it took an older run away, so that what is left of it is not whole.

    The first files to go are those that make the older run one. As long as all are there, it is whole.
    """
    return any(not (output_dir / name).exists() for name in _read(output_dir / CLEARING_FILE).get("stood", ()))


def _clear(output_dir: Path) -> None:
    """Take an older run away. A file says so while it is done, and a file or two less make the older run none at once."""
    if not being_cleared(output_dir):
        stood = [name for name in (CONFIG_FILE, RUN_FILE) if (output_dir / name).exists()]
        write_text(output_dir / CLEARING_FILE, json.dumps({"stood": stood}) + "\n")
    for name in (CONFIG_FILE, RUN_FILE):
        (output_dir / name).unlink(missing_ok=True)
        flush(output_dir)
    for pattern in SAVED_FILES:
        for file in output_dir.glob(pattern):
            file.unlink()
    for checkpoint in own_checkpoints(output_dir):
        remove(checkpoint)
    clear_leftovers(output_dir)
