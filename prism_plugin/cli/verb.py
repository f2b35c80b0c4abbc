"""How a verb is carried out and how it ends: with a result, one sentence, or, where the fault is ours, a traceback."""

import argparse
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TextIO

from prism_plugin.cli.errors import explain
from prism_plugin.cli.plug_ins import HELP, OPTION, import_modules
from prism_plugin.errors import PrismError

REFUSED, STOPPED, PIPE_CLOSED = 2, 130, 141  # the last two as a shell counts them: 128 and the signal's number
_TRACEBACK = "--traceback"
_STOPPED = "stopped; what was not finished is not there, and the same command starts over."
_REPORT = "This is a fault of prism_plugin and not of what was typed: please report it, with the command and the lines above."


@dataclass
class Call:
    """A verb on its way: what is known of it grows, and says how an error is told."""

    prog: str
    module: ModuleType | None = None
    parser: argparse.ArgumentParser | None = None
    args: argparse.Namespace | None = None
    shows_traceback: bool = False


def run_verb(call: Call, arguments: Sequence[str], load: Callable[[], ModuleType]) -> int:
    """Parse a verb's arguments and run it.

    Args:
        call: Of which nothing but the name is known yet.
        arguments: What follows the verb on the command line.
        load: Imports the verb's module, after those of `--import`: it lists what is known.

    Returns:
        The exit code.
    """
    call.shows_traceback = _TRACEBACK in arguments
    of_user = [one for one in import_modules(list(arguments)) if one != _TRACEBACK]  # wherever it stands, and of every task
    call.module = load()
    about = str(call.module.__doc__).split("\n")[0]
    # a part of `--import` would not import anything
    call.parser = argparse.ArgumentParser(prog=call.prog, description=about, allow_abbrev=False)
    call.module.add_arguments(call.parser)
    call.parser.add_argument(OPTION, metavar="MODULE", help=HELP)
    call.parser.add_argument(_TRACEBACK, action="store_true", help="show Python's traceback with an error")
    call.args = call.parser.parse_args(of_user)
    return call.module.run(call.args)


def ended(call: Call, work: Callable[[Call], int]) -> int:
    """Do what the command line asks for, and say how it ended. The one place where exceptions become sentences.

    Args:
        call: Says who speaks; `work` fills it in.
        work: Does it.

    Returns:
        The exit code: that of `work`; 2 after one sentence on stderr; 130 after Ctrl-C; 141 where the reader of a pipe left.

    Raises:
        SystemExit: What argparse ends with.
        Exception: A fault of ours, as it came.
    """
    _write_what_can_be(sys.stdout)
    try:
        try:
            return work(call)
        finally:
            sys.stdout.flush()  # here, where a closed pipe can still be told from a fault
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            _tell(call, _how_to_go_on(call))
        return STOPPED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _left_by_reader():
            return _unread()
        sentence = explain(error, call.args, call.parser)
        if sentence is None:
            _end_bars()
            error.add_note(_REPORT)
            raise
        if call.shows_traceback:
            traceback.print_exception(error)
        _tell(call, sentence)
        return REFUSED
    except SystemExit as error:  # rich ends so when it meets a closed pipe
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return _unread()


def _tell(call: Call, sentence: str) -> None:
    _end_bars()
    print(f"{call.prog}: {sentence}", file=sys.stderr)


def _how_to_go_on(call: Call) -> str:
    if call.args is None:
        return "stopped before anything was done."
    stopped = getattr(call.module, "stopped", None)
    if stopped is not None:
        with suppress(PrismError):  # a recipe that cannot be read, which nobody was told of yet
            return stopped(call.args)
    return _STOPPED


def _end_bars() -> None:
    """End the line of each progress bar that an error left open, so that a sentence has a line of its own."""
    tqdm: Any = sys.modules.get("tqdm.std")  # there if one of the packages that show bars was imported
    for bar in [] if tqdm is None else list(tqdm.tqdm._instances):
        bar.close()


def _write_what_can_be(stream: TextIO) -> None:
    """Let a terminal that is not UTF-8 show what it can, and the rest as escapes: an answer must not be lost over it."""
    reconfigure: Any = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _left_by_reader() -> list[TextIO]:
    """Which of our outputs nobody reads any more; none if it was some other pipe that broke."""
    left = []
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        with suppress(OSError, ValueError):  # one that somebody put in its place, and is no file
            poll.register(stream.fileno(), 0)
            left += [stream] * any(event & select.POLLERR for _, event in poll.poll(0))
    return left


def _unread() -> int:
    """End without a word: whoever read our output, as `head` does, has what it wanted."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in _left_by_reader():
        os.dup2(nowhere, stream.fileno())  # else Python complains when it empties its buffers at the end
    os.close(nowhere)
    return PIPE_CLOSED
