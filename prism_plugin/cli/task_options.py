"""A task's fields as options of `eval`: what can be set of a task is said once, by its dataclass."""

import argparse
import typing
from dataclasses import Field, fields
from typing import Any, NoReturn

from prism_plugin.errors import ConfigurationError, did_you_mean
from prism_plugin.evaluation.tasks import TASKS, Task
from prism_plugin.parsing_yaml import parse_yaml

_PLACE = "field_"  # so that a field and an option of `eval` never meet in a namespace


class TaskParser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and not below a page of usage."""

    def error(self, message: str) -> NoReturn:
        """End with the sentence."""
        self.exit(2, f"{self.prog}: {message.rstrip('.')}.\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse an option that is not known here: the verb would not know which task it was meant for."""
        parsed, rest = super().parse_known_args(args, namespace)
        for given in rest:
            name = given.partition("=")[0]
            known = did_you_mean(name, self._option_string_actions)
            self.error(f"nothing reads {given!r}{known}; `{self.prog} --help` lists what is read")
        return parsed, rest


def add_task_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Declare an option for each field of a task, with the field's `help`.

    Args:
        parser: Has the verb's own options already.
        name: Of the task.

    Raises:
        ConfigurationError: If a field has the name of one of those.
    """
    group = parser.add_argument_group("fields of the task")
    for one in fields(TASKS.get(name)):  # type: ignore[arg-type]  # checked by `register`
        if not one.init:
            continue
        help_text = f"{one.metadata.get('help', one.name)}{_default_in_words(one)}".replace("%", "%%")
        how: dict[str, Any] = {"metavar": one.name.upper()}
        if isinstance(one.default, bool):
            how = {"action": argparse.BooleanOptionalAction if one.default else "store_true"}
        try:
            group.add_argument(option_of(one.name), dest=f"{_PLACE}{one.name}", default=None, help=help_text, **how)
        except argparse.ArgumentError as error:
            raise ConfigurationError(
                f"The task {name!r} has a field {one.name!r}, but `{option_of(one.name)}` is an option of `eval` itself; give "
                "the field another name."
            ) from error


def task_from(args: argparse.Namespace) -> Task:
    """Build the task that was asked for, with what was given of its fields.

    Raises:
        ConfigurationError: If a value is of another type or out of range, or one is missing.
    """
    given = {key.removeprefix(_PLACE): value for key, value in vars(args).items() if key.startswith(_PLACE)}
    hints = typing.get_type_hints(TASKS.get(args.task))
    values = {name: _read(value, name, hints.get(name)) for name, value in given.items() if value is not None}
    return TASKS.from_dict({"name": args.task, **values}, source=f"eval {args.task}")


def option_of(field_name: str) -> str:
    """How a field is called on the command line."""
    return f"--{field_name.replace('_', '-')}"


def _read(value: Any, name: str, hint: Any) -> Any:
    """A text stays one, whatever it looks like; all else is read as in a recipe."""
    takes_text = hint is str or str in typing.get_args(hint)
    return value if takes_text or not isinstance(value, str) else parse_yaml(value, option_of(name))


def _default_in_words(one: Field[Any]) -> str:
    told = "(default" in one.metadata.get("help", "") or one.default is None or isinstance(one.default, bool)
    return "" if told or not isinstance(one.default, int | float | str) else f" (default: {one.default})"
