"""One run at a time in an `output_dir`: a lock that names its process, and ends with it however it ends."""

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from prism_plugin.errors import ConfigurationError, PrismError, SavingError
from prism_plugin.modeling.hub import require_hub, uploading
from prism_plugin.modeling.model import PrismModel
from prism_plugin.modeling.places import read_by, require_apart, require_nothing_foreign
from prism_plugin.parsing import parse_json
from prism_plugin.training.checkpoints import last_checkpoint, require_free_names
from prism_plugin.writing import make_folder, remove_empty

LOCK_FILE = "_run.lock"  # Trainer uploads nothing whose name begins with an underscore
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # some network file systems have no locks
_held: dict[Path, int] = {}  # folder -> descriptor of its lock, of this process


def _forget() -> None:
    """A forked worker may outlive the run, and must not keep its locks."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_forget)


@contextmanager
def claimed(args: TrainingArguments, check: Callable[[Path], None] | None = None) -> Iterator[None]:
    """Have `output_dir` for this run alone, made if it is not there. Collective: what is refused is raised by every process.

    Only processes that save take the lock. A process that has it already keeps it. Folders that were made for it and are
    still empty at the end go away again.

    Args:
        args: Of the run.
        check: Asked under the lock, by the processes that save, whether the folder can be used.

    Raises:
        ConfigurationError: If another process has it.
        SavingError: If it cannot be made or written.
        PrismError: What `check` raises.
    """
    folder = Path(args.output_dir)
    claim = _Claim(folder)

    def take() -> None:
        claim.take()
        if check is not None:
            check(folder)

    try:
        where_saved(args, take)
        yield
    finally:
        claim.release()


def where_saved(args: TrainingArguments, work: Callable[[], None]) -> None:
    """Let the processes that save do something, and raise on all processes what one of them was refused. Collective.

    Raises:
        PrismError: What was refused.
        OSError: What the file system refused.
    """
    refused: PrismError | OSError | None = None
    if args.should_save:
        try:
            work()
        except (PrismError, OSError) as error:
            refused = error
    everywhere = [refused]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        everywhere = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, refused)
    for one in (refused, *everywhere):
        if one is not None:
            raise one


def require_run_folder(folder: Path, *, resumes: bool) -> None:
    """Check that a run's checkpoints and its result will cost nobody else's files.

    Args:
        folder: The folder, there or not.
        resumes: Whether the run goes on from a checkpoint; one that does not is warned of those that are there.

    Raises:
        SavingError: If they would.
    """
    require_nothing_foreign(folder, "`output_dir`")
    require_free_names(folder, links=True)
    older = None if resumes else last_checkpoint(folder)
    if older is not None:
        warnings.warn(
            f"`output_dir` {folder} holds {older.name} of an older run, and this one starts over, so resuming later would take "
            "the one with more steps; choose another folder, take older ones away, or pass `resume_from_checkpoint=True`.",
            stacklevel=2,
        )


def repository_of(args: TrainingArguments) -> str:
    """The repository on the Hub that a run is uploaded to, if it is."""
    return args.hub_model_id or Path(args.output_dir).absolute().name


class RunFolderTrainer(Trainer):
    """A Trainer that has its `output_dir` for itself while it trains, and takes nothing of others away."""

    prism_model: PrismModel

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As Trainer has it, under the lock. Collective."""
        require_apart(Path(self.args.output_dir), read_by(self.prism_model), "`output_dir`")
        with claimed(self.args, partial(require_run_folder, resumes=bool(resume_from_checkpoint))):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As Trainer has it, when the trainer is made: what the Hub refuses is known before anything is trained."""
        if self.is_world_process_zero():
            name, token = repository_of(self.args), self.args.hub_token if token is None else token
            require_hub(name, token)
            with uploading(name):
                super().init_hf_repo(token, private)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer has it."""
        with uploading(repository_of(self.args)):
            return super().push_to_hub(*args, **kwargs)

    def create_model_card(self, *args: Any, model_name: str | None = None, **kwargs: Any) -> None:
        """Nothing: the card is written with the weights, and says what was measured. Trainer's own would take its place.

        Raises:
            ConfigurationError: If something is to be said in it, which would be lost.
        """
        said = [name for name, value in kwargs.items() if value is not None]
        if args or said:
            raise ConfigurationError(
                f"The model card is written when the model is saved, so {', '.join(said) or 'what is given'} would be ignored; "
                "edit README.md in `output_dir`."
            )

    def _finalize_training(self, *args: Any) -> TrainOutput:
        # With a limit of 1, Trainer would now delete all but the best, whatever else begins like a checkpoint's name too.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Say in one sentence that an `output_dir` cannot be written.

    Raises:
        SavingError: If an OSError is raised within.
    """
    try:
        yield
    except SavingError:
        raise
    except OSError as error:
        raise SavingError(
            f"`output_dir` {folder} must be a folder that can be written, but: {error}; make room or choose another."
        ) from error


class _Claim:
    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder.absolute(), list[Path]()
        self._key: Path | None = None  # that of a lock of this claim's own

    def take(self) -> None:
        with writing_in(self._folder):
            self._made = make_folder(self._folder)
            key = self._folder.resolve()
            if key not in _held:
                _held[key] = _lock(self._folder)
                self._key = key

    def release(self) -> None:
        if self._key in _held:  # not in a worker that was forked since
            with suppress(OSError):
                (self._folder / LOCK_FILE).unlink(missing_ok=True)  # while the lock is held: whoever waits looks again
            os.close(_held.pop(self._key))
        remove_empty(self._made)


def _lock(folder: Path) -> int:
    path = folder / LOCK_FILE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _take(descriptor, folder, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever had it has just taken the file away


def _take(descriptor: int, folder: Path, path: Path) -> bool:
    """Lock a file and write into it who has it. Returns False if it is no longer the one at `path`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"`output_dir` {folder} is in use by {_holder(path)}; wait for its end, or choose another folder."
        ) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"The file system of `output_dir` {folder} has no locks ({error}), so nothing keeps a second run out of it.",
            stacklevel=2,
        )
    if not _is_still(descriptor, path):
        return False
    since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(about).encode(), 0)
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        about = parse_json(path.read_text(encoding="utf-8"))
        return f"process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is about to write it, or to go
        return "another process"
