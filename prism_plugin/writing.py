"""Files that appear together or not at all: written into a hidden folder beside, flushed, and moved when all are whole."""

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from prism_plugin.errors import SavingError


@contextmanager
def staged_files(directory: Path, *, marker: str, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Give an empty folder to write into; at the end its files are moved into `directory`.

    Args:
        directory: Where the files belong. Made if it is not there; otherwise files of the same names are replaced and
            others stay.
        marker: Name of the file whose presence says that the folder is whole: it leaves first and comes last.
        stale: Names that go away too, if the marker stood in `directory`: files of ours that are not written this time.

    Raises:
        SavingError: If something cannot be written or moved. What stood in `directory` is unchanged.
    """
    beside = directory if directory.is_dir() else directory.parent
    stage, made = beside / f".{directory.resolve().name}-{uuid.uuid4().hex}", list[Path]()
    try:
        made = make_folder(beside)
        stage.mkdir()
        yield stage
        for path in stage.rglob("*"):
            flush(path)
        if directory.exists():
            _move_into(directory, stage, marker, set(stale))
        else:
            stage.rename(directory)
        flush(directory)
        flush(directory.parent)
    except (OSError, SafetensorError) as error:
        raise SavingError(
            f"Nothing could be saved in {str(directory)!r} ({str(error).strip()}), and nothing there was changed; "
            "make room or choose a folder that can be written."
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        remove_empty(made)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, and those above it, where they are not there.

    Returns:
        Those that were made, the innermost first: for `remove_empty`, if nothing came of it.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except BaseException:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Take folders away, in their order, that are empty; others stay."""
    for folder in folders:
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()


def remove_leftovers(directory: Path, *files: str) -> None:
    """Take away what killed processes were writing into a folder, and these files of it; nobody may be writing now."""
    names = "|".join(re.escape(name) for name in (directory.resolve().name, *files))
    for one in directory.glob(".*"):
        if re.fullmatch(rf"\.({names})-[0-9a-f]{{32}}", one.name) and not one.is_symlink():
            shutil.rmtree(one) if one.is_dir() else one.unlink()


def _move_into(directory: Path, stage: Path, marker: str, stale: set[str]) -> None:
    new = sorted((path.name for path in stage.iterdir()), key=lambda name: (name == marker, name))
    going = set(new) | (stale if (directory / marker).exists() else set())
    old = sorted((name for name in going if (directory / name).exists()), key=lambda name: (name != marker, name))
    retired = stage / "retired"
    retired.mkdir()
    moves = [(directory / name, retired / name) for name in old] + [(stage / name, directory / name) for name in new]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.replace(target)
            done.append((source, target))
    except OSError:
        for source, target in reversed(done):
            target.replace(source)
        raise


def require_place(path: Path, what: str) -> None:
    """Check, before the work whose result it is to hold, that a file can be written.

    Args:
        path: The file. Folders above it that are not there yet are made when it is written.
        what: What the file is called in the error.

    Raises:
        SavingError: If a folder is in the way, or the folder that it belongs to is none or cannot be written.
    """
    if path.is_dir():
        raise SavingError(f"{path} is a folder and cannot be overwritten by a {what}; choose another name.")
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SavingError(f"no {what} can be written to {path} ({error}); choose a folder that can be written.") from error


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8: beside the old one, flushed, then renamed. Its folder is made if it is not there.

    Raises:
        SavingError: If it cannot be written; what stood there is unchanged.
    """
    beside, made = path.with_name(f".{path.name}-{uuid.uuid4().hex}"), list[Path]()
    try:
        made = make_folder(path.parent)
        with beside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        with suppress(OSError):  # where the folder is a file, there is nothing to remove
            beside.unlink(missing_ok=True)
        remove_empty(made)
        if not isinstance(error, OSError):
            raise
        raise SavingError(
            f"{path} could not be written ({error}), and what stood there is unchanged; make room or choose another folder."
        ) from error


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
