"""The one reader of settings: a mapping out of a file or an option -> a dataclass, whose annotations say what may stand there.

Recipes, sampler_config.json, prism_config.json, backbone.json, run.json and tuned settings are read here and nowhere else; what
a user registers is read by its own annotations. It needs nothing but Python, so that an exported sampler reads its files by it
too.
"""

import json
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from prism_plugin.errors import ConfigurationError, PrismError, StoredStateError, UnknownKeyError, did_you_mean

T = TypeVar("T")
_WORDS = {
    bool: "true or false", int: "an integer", float: "a number", str: "text", types.NoneType: "null", list: "a list",
    tuple: "a list", dict: "a mapping", Any: "anything",
}  # fmt: skip


class _MisfitError(Exception):
    """A value is of another type."""


def from_mapping(
    cls: type[T], values: Mapping[str, Any], *, source: str, whole: bool = False, optional: Collection[str] = ()
) -> T:
    """Build a dataclass from what was read: its fields' names as keys, and values of the types that it declares.

    A list will do for a tuple, an integer for a float, and a mapping for a dataclass. NaN is no number.

    Args:
        cls: A dataclass; its own `__post_init__` checks what the types do not say.
        values: Names and values.
        source: Where they were read, for the error message.
        whole: Every field must be there, also where it has a default, as in a file that is never written by hand.
        optional: With `whole`, fields that may be missing all the same.

    Raises:
        UnknownKeyError: If there is a key that is no field.
        ConfigurationError: If something is missing, of another type, or out of range.
    """
    given = checked(cls, values, source=source, whole=whole)
    left_out = [
        field.name
        for field in fields(cls)  # type: ignore[arg-type]  # a dataclass, as said above
        if field.init and (whole or _has_no_default(field)) and field.name not in {*given, *optional}
    ]
    if left_out:
        raise ConfigurationError(f"{source} needs {', '.join(map(repr, sorted(left_out)))}; add it.")
    with naming(source):
        return cls(**given)


def _has_no_default(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def changed(instance: T, values: Mapping[str, Any], *, source: str) -> T:
    """Make a copy of a dataclass with other values, read as `from_mapping` reads them.

    Raises:
        UnknownKeyError: If there is a key that is no field.
        ConfigurationError: If a value is of another type, or out of range.
    """
    given = checked(type(instance), values, source=source)
    with naming(source):
        return replace(instance, **given)  # type: ignore[type-var]  # a dataclass, as said above


def checked(cls: type, values: Mapping[str, Any], *, source: str, whole: bool = False) -> dict[str, Any]:
    """Check keys and types as `from_mapping` does, for a dataclass that is built later. Returns the arguments to build it of.

    Raises:
        UnknownKeyError: If there is a key that is no field.
        ConfigurationError: If a value is of another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{source} must be a mapping of settings, found {values!r}.")
    known = [field.name for field in fields(cls) if field.init]
    refuse_unknown(values, known, source=source)
    hints = _hints(cls)
    read = {}
    for name, value in values.items():
        hint = hints.get(name, Any)
        try:
            read[name] = _fitted(value, hint, f"{source}, `{name}`", whole)
        except _MisfitError:
            raise ConfigurationError(f"{source}: `{name}` must be {_in_words(hint)}, found {value!r}.") from None
    return read


def refuse_unknown(values: Mapping[str, Any], known: Collection[str], *, source: str) -> None:
    """Refuse keys that nothing reads, all at once.

    Raises:
        UnknownKeyError: If there are any.
    """
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise UnknownKeyError(
            f"{source}: nothing reads {', '.join(f'{name!r}{did_you_mean(name, known)}' for name in unknown)}; known: "
            f"{', '.join(sorted(known)) or 'none'}."
        )


def fits(value: Any, hint: Any) -> bool:
    """Say whether a value that was read is of a type, such as `dict[str, list[int]]`."""
    with suppress(_MisfitError, PrismError):
        _fitted(value, hint, "", False)
        return True
    return False


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Say where the settings were read that are refused within.

    Raises:
        PrismError: What is raised within, with the source in front.
    """
    try:
        yield
    except PrismError as error:
        raise type(error)(f"{source}: {error}") from error


def without_version(values: Mapping[str, Any], version: int, *, source: str) -> dict[str, Any]:
    """Check the `format_version` of a file of ours, and give what else it holds.

    Raises:
        StoredStateError: If it is missing or another one.
    """
    if not isinstance(values, Mapping):
        raise StoredStateError(f"{source} must be a mapping of settings, found {values!r}.")
    found = values.get("format_version")
    if not fits(found, int) or found != version:
        raise StoredStateError(
            f"{source}: `format_version` must be {version}, found {found!r}; use the version of prism_plugin that wrote it."
        )
    return {name: value for name, value in values.items() if name != "format_version"}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted names of what two nested mappings, of values that JSON has, do not have in common."""
    return sorted({name for name, _ in _flat(one).items() ^ _flat(other).items()})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": json.dumps(value, sort_keys=True)}
    return flat


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, AttributeError, TypeError):  # a class of somebody whose annotations are for type checkers only
        return {}


def _fitted(value: Any, hint: Any, source: str, whole: bool) -> Any:
    """The value as a type has it, or _MisfitError."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            with suppress(_MisfitError):
                return _fitted(value, one, source, whole)
        raise _MisfitError
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(hint, value, source=source, whole=whole)
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        each = arguments if _is_of_one_length(hint) else (arguments[:1] or (Any,)) * len(value)
        if len(each) != len(value):
            raise _MisfitError
        return (tuple if origin is tuple else list)(_fitted(*pair, source, whole) for pair in zip(value, each, strict=True))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        names, held = arguments or (Any, Any)
        return {
            _fitted(key, names, source, whole): _fitted(one, held, f"{source}, `{key}`", whole) for key, one in value.items()
        }
    if not _is_of(value, hint):
        raise _MisfitError
    return value


def _is_of_one_length(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[-1:] != (...,)


def _is_of(value: Any, hint: Any) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63  # as tensors hold them
    if hint is float:
        return is_integer or (isinstance(value, float) and not math.isnan(value))
    if hint is int:
        return is_integer
    if (choices := _choices(hint)) is not None:
        return any(value == one and type(value) is type(one) for one in choices)
    try:
        return hint is Any or isinstance(value, typing.get_origin(hint) or hint)
    except TypeError:  # a protocol, say, of which the dataclass itself makes sure
        return True


def _choices(hint: Any) -> tuple[Any, ...] | None:
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(one.value for one in hint) if isinstance(hint, type) and issubclass(hint, Enum) else None


def _in_words(hint: Any) -> str:
    """What a person would write down for a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if (choices := _choices(hint)) is not None:
        return f"one of {', '.join(map(str, choices))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_in_words, arguments)))
    if _is_of_one_length(hint):
        return f"a list of {len(arguments)}: {', '.join(map(_in_words, arguments))}"
    if origin in (list, tuple, Sequence):
        return f"a list, each {_in_words(arguments[0])}"
    if origin in (dict, Mapping):
        return "a mapping" if arguments[1] is Any else f"a mapping from {' to '.join(map(_in_words, arguments))}"
    if is_dataclass(hint):
        return "a mapping of settings"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))
