"""Every exception that is no fault of ours, in one sentence; those that are keep their traceback."""

import argparse
import errno
import re
import sysconfig
import traceback
from pathlib import Path

import prism_plugin
from prism_plugin.errors import PrismError, is_out_of_memory

_CAUSES = {
    errno.ENOSPC: ("the disk is full", "make room or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "make room or choose another folder"),
    errno.EACCES: ("access is denied", "change the permissions or choose another folder"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}
_MORE = "`--traceback` shows how it came to that"
_OURS = Path(prism_plugin.__file__).parent
_STANDARD = Path(sysconfig.get_path("stdlib"))
_PACKAGES = tuple({Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
# What is called to compute or to read fails because of what it was given: whoever called it tells more.
_TOOLS = ("torch", "numpy", "yaml", "rich")
# A name as a message of the library has it, in a call, `PrismConfig(mask_token_id=...)` or `load_backbone(..., dtype="auto")`,
_CALLED = re.compile(r"(with )?`\w+\((?:\.\.\., )?(\w+)=([^`]*)\)`")
# and by itself: `max_new_tokens`, `trust_remote_code=True`, `num_steps` of SamplerSettings.
_ABOUT_A_FILE = re.compile(r"\S+\.ya?ml\b")
_NAMED = re.compile(r"(with )?`([a-z][a-z0-9_]*)(?:=([^`]*))?`(?: of [A-Z]\w+)?")
# What a program sets on a model before it attaches to it. Whoever has the command line alone has the model's files.
_SET = re.compile(r"set `backbone\.config\.(\w+) = (True|False)` before attaching|load it with `(\w+)=(True|False)`")


def explain(error: Exception, args: argparse.Namespace | None, parser: argparse.ArgumentParser | None) -> str | None:
    """Say in one sentence what went wrong where it is not our fault: what the user, the machine or other code can put right.

    Args:
        error: What a verb ended with.
        args: As parsed; None where the verb did not get so far.
        parser: Of the verb, whose options take the place of the library's words for them.

    Returns:
        The sentence; None for a fault of ours, whose traceback has to be seen.
    """
    if isinstance(error, PrismError):
        return str(error) if parser is None else in_options(str(error), parser)
    if isinstance(error, OSError):
        return _of_system(error)
    memory = _of_memory(error, args)
    if memory is not None:
        return memory
    place = _raised_at(error)
    if place is None:
        return None
    return f"{place}: {_in_one_line(error)}; {_MORE}."


def _of_system(error: OSError) -> str:
    """What the disk, the file system, or the way to the Hub refused."""
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno not in _CAUSES:
        return f"{where}{error.strerror or _in_one_line(error)}; {_MORE}."
    cause, remedy = _CAUSES[error.errno]
    return f"{where}{cause}; {remedy}."


def _of_memory(error: Exception, args: argparse.Namespace | None) -> str | None:
    """What to do where memory did not suffice; None for an error of another kind."""
    cause = next(iter(str(error).strip().splitlines()), "").split(". ")[0].rstrip(".")
    if isinstance(error, MemoryError):
        return f"the memory of this machine does not suffice{f' ({cause})' if cause else ''}; ask for less at once."
    if not isinstance(error, RuntimeError) or not is_out_of_memory(error):
        return None
    ways = []
    if args is not None and hasattr(args, "device"):
        ways += ["a smaller `--batch-size`"] * (getattr(args, "batch_size", 1) > 1)
        ways += ["`--dtype bfloat16`"] * (args.dtype in ("auto", "float32")) + ["another `--device`"]
    told = f"give {', or '.join(ways)}" if ways else "ask for less at once"
    return f"the memory of the device does not suffice ({cause}); {told}."


def _raised_at(error: Exception) -> str | None:
    """Where somebody else's code raised an error: a package, or a file and its line; None where it was ours.

    Python's own modules and those that only compute say nothing of whose fault it was: the code that called them does.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if _OURS in file.parents:
            return None
        package = _package_of(file)
        if package in _TOOLS or (package is None and (_STANDARD in file.parents or not file.is_absolute())):
            continue
        return package or f"{file}, line {line}"
    return None


def _package_of(file: Path) -> str | None:
    """The installed package that a file belongs to, by the name that it is imported by."""
    for folder in _PACKAGES:
        if folder in file.parents:
            return file.relative_to(folder).parts[0].removesuffix(".py")
    return None


def _in_one_line(error: Exception) -> str:
    told = " ".join(str(error).split()).rstrip(".;")
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def in_options(message: str, parser: argparse.ArgumentParser) -> str:
    """Write a message of the library as the command line has it: `max_new_tokens` is `--max-new-tokens` there.

    What a recipe can hold too keeps the recipe's words, but for Python's way to give it a value. A message about a YAML file,
    which begins with its name, keeps the file's, but for what is given a value in Python's way and can be an option alone.

    Args:
        message: A sentence.
        parser: Of the verb.
    """
    options = _options(parser)
    if about_a_file := bool(_ABOUT_A_FILE.match(message)):
        options = {name: one for name, one in options.items() if not one.dest.startswith("recipe:")}

    def written(match: re.Match[str]) -> str:
        before, name, value = match.groups()
        if about_a_file and value is None:
            return match.group()
        before = before or ""
        if f"no_{name}" in options and value in ("True", "False"):
            option = options[f"no_{name}"].option_strings[0]
            return f"{before}`{option}`" if value == "False" else f"without `{option}`"
        action = options.get(name)
        if action is None or (action.dest.startswith("recipe:") and value is None):
            return match.group()
        option = next(one for one in action.option_strings if _as_name(one) == name)
        takes_none = value in (None, "...") or action.nargs == 0 or (action.const is not None and value == "True")
        return f"{before}`{option}`" if takes_none else f"{before}`{option} {str(value).strip(chr(34))}`"

    def in_file(match: re.Match[str]) -> str:
        name, value = (one for one in match.groups() if one)
        return f'write `"{name}": {value.lower()}` into its config.json'

    told = _SET.sub(in_file, _NAMED.sub(written, _CALLED.sub(written, message)))
    if "`register_backbone(" not in told:
        return told
    return f"{told.rstrip('.')}, in a module that `--import` names."


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options by the library's words for them, those of the verb's tasks too. argparse tells them under private names alone."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                found |= _options(one)
        found |= {_as_name(option): action for option in action.option_strings}
    return found


def _as_name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")
