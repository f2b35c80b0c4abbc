"""What the disk, the file system or the device refuses, in one sentence."""

import argparse
import errno

from prism_plugin.errors import is_out_of_memory

_CAUSES = {
    errno.ENOSPC: ("the disk is full", "make room or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "make room or choose another folder"),
    errno.EACCES: ("access is denied", "change the permissions or choose another folder"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
}


def explain_os_error(error: OSError) -> str | None:
    """Say in one sentence what the user can put right: a full disk, a denied access, a read-only file system.

    Returns:
        The sentence, with the file if the error names one; None if the error is of another kind.
    """
    if error.errno not in _CAUSES:
        return None
    cause, remedy = _CAUSES[error.errno]
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{cause}; {remedy}."


def explain_out_of_memory(error: RuntimeError, args: argparse.Namespace) -> str | None:
    """Say in one sentence what to do where memory did not suffice.

    Returns:
        The sentence; None if the error is of another kind, or the verb has none of these options.
    """
    cause = next(iter(str(error).strip().splitlines()), "").split(". ")[0].rstrip(".")
    if not is_out_of_memory(error) or not hasattr(args, "device"):
        return None
    ways = ["a smaller `--batch-size`"] * (getattr(args, "batch_size", 1) > 1)
    ways += ["`--dtype bfloat16`"] * (args.dtype in ("auto", "float32")) + ["another `--device`"]
    return f"the memory of the device does not suffice ({cause}); give {', or '.join(ways)}."
