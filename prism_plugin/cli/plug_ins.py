"""`--import MODULE`: a user's own terms, corruptors, heads, rules and backbones, registered before a verb reads any name."""

import importlib
import sys
from pathlib import Path

from prism_plugin.errors import ConfigurationError, PrismError

OPTION = "--import"
HELP = "import this Python module first: its registrations can be named then; may be given several times"


def import_modules(arguments: list[str]) -> list[str]:
    """Import the modules that `--import` names; the working directory is searched first, as by `python -m`.

    Args:
        arguments: What follows the verb on the command line.

    Returns:
        The arguments without them.

    Raises:
        ConfigurationError: If a module cannot be imported.
    """
    rest, names = [], []
    following = iter(arguments)
    for argument in following:
        if argument == OPTION:
            names.append(next(following, ""))
        elif argument.startswith(f"{OPTION}="):
            names.append(argument.removeprefix(f"{OPTION}="))
        else:
            rest.append(argument)
    if names and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever the module's own code raises: a SyntaxError, a name that is not defined, ...
            kind = "" if isinstance(error, ImportError | PrismError) else f"{type(error).__name__}: "
            raise ConfigurationError(
                f"`{OPTION}` takes a module that Python can import from here, such as `my_terms` for my_terms.py in "
                f"{Path.cwd()}, but {name!r} cannot be: {kind}{str(error).rstrip('.')}."
            ) from error
    return rest
