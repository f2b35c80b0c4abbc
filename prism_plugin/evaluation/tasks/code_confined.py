"""A process that confines itself, then runs an answer and its tests, and says how far it came. Started by its path.

What runs here may do what it likes within the limits. They bound what it can use up; they are no sandbox: it can read what its
user can read, write where its user can write, and reach the network.
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys
import types
from typing import Any

PROGRAM = "program.json"
PARSES, PASSES = "parses", "passes"
NOBODY = 65534
# Of Linux: prctl(2), capabilities(7).
_KEEP_CAPABILITIES, _CAPABILITY_VERSION, _READ_ANYTHING = 8, 0x20080522, 1 << 2


def run() -> None:
    """Run the program that lies in the working directory. Its last step ends the process."""
    with open(PROGRAM, encoding="utf-8") as file:  # noqa: PTH123  # pathlib would double the time that all this takes
        program = json.load(file)
    os.unlink(PROGRAM)  # noqa: PTH108  # as above
    told, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    give_up_root()
    confine(**program["limits"])
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    answer = compile(program["answer"], "answer", "exec", dont_inherit=True)
    os.write(told, (program["sign"] + PARSES).encode())
    exec(answer, vars(module))
    exec(compile(program["tests"], "tests", "exec", dont_inherit=True), vars(module))
    os.write(told, (program["sign"] + PASSES).encode())
    os._exit(0)


def give_up_root() -> None:
    """Become a user to whom nothing belongs: root is bound by no limit on processes, and may write anywhere.

    On Linux the right to read is kept where Python itself lies where only root can read.
    """
    if os.geteuid() != 0:
        return
    linux: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if linux is not None:
        linux.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    try:
        os.chown(".", NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        return  # a container that has no such user; its root is bound by the limits as any user is
    if linux is not None:
        head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        wanted = 0 if os.access(os.__file__, os.R_OK) else _READ_ANYTHING
        for kept in (wanted, 0):  # none, where root itself does not have that right
            if linux.capset(head, (ctypes.c_uint32 * 6)(kept, kept)) == 0:
                break


def confine(seconds: float, memory: int, file: int, processes: int) -> None:
    """Set limits, which nothing that runs here can raise.

    Args:
        seconds: Of the processor; rounded up. The clock is read by who started this; if that was killed, by an alarm.
        memory: Bytes of address space.
        file: Bytes of a file that is written.
        processes: Processes and threads that the user may have, this one and others' among them.
    """
    most = {
        resource.RLIMIT_CPU: math.ceil(seconds),
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
    }
    for what, value in most.items():
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))
    signal.alarm(math.ceil(seconds) + 1)


if __name__ == "__main__":
    run()
