"""What the disk or the file system refuses, in one sentence."""

import errno

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
