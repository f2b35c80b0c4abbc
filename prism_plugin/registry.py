"""Names for classes that appear in files: rules, schedules, corruptors, terms."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

from prism_plugin.errors import ConfigurationError, UnknownNameError, did_you_mean
from prism_plugin.reader import from_mapping, naming

T = TypeVar("T")


def require_name(kind: str, name: str, taken: Mapping[str, Any]) -> None:
    """Refuse a name that cannot stand in files.

    Args:
        kind: What is to have it, in the singular, for the message.
        name: The name.
        taken: What has a name already.

    Raises:
        ConfigurationError: If the name is not lower case with underscores, or is taken.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigurationError(f"A new {kind} needs a name of lower-case letters, digits and _, found {name!r}.")
    if name in taken:
        owner = getattr(taken[name], "__name__", "taken")
        raise ConfigurationError(f"The {kind} {name!r} is {owner} already; choose another name.")


class Registry(Generic[T]):
    """Names for dataclasses of one kind. Not a plug-in loader: import your module and its names are there.

    Args:
        kind: What the classes are, in the singular, for error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._by_name: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Give the decorated dataclass a name, which must never change afterwards: files hold it.

        Raises:
            ConfigurationError: If the name is not lower case with underscores, is taken, or the class is no dataclass.
        """

        def add(cls: type[T]) -> type[T]:
            require_name(self.kind, name, self._by_name)
            if not is_dataclass(cls):
                raise ConfigurationError(f"{cls.__name__} must be a dataclass to be saved as a {self.kind}; decorate it first.")
            self._by_name[name] = cls
            return cls

        return add

    def names(self) -> tuple[str, ...]:
        """List the registered names in alphabetical order."""
        return tuple(sorted(self._by_name))

    def get(self, name: str) -> type[T]:
        """Find the class of a name.

        Raises:
            UnknownNameError: If nothing has that name; the message lists all names and the nearest.
        """
        if not isinstance(name, str) or name not in self._by_name:
            known = ", ".join(self.names()) or "none"
            raise UnknownNameError(
                f"No {self.kind} is called {name!r}{did_you_mean(str(name), self._by_name)}; known: {known}."
            )
        return self._by_name[name]

    def to_dict(self, instance: T) -> dict[str, Any]:
        """Write an instance as its name and its fields, ready for JSON.

        Raises:
            UnknownNameError: If its class is not registered, as a lambda's is not.
        """
        for name, cls in self._by_name.items():
            if type(instance) is cls:
                settings = {field.name: getattr(instance, field.name) for field in fields(cls) if field.init}  # type: ignore[arg-type]  # checked by `register`
                return {"name": name, **settings}
        raise UnknownNameError(
            f"Only a registered {self.kind} can be saved, found {type(instance).__name__}; "
            f"register its class or use one of {', '.join(self.names()) or 'none'}."
        )

    def from_dict(self, values: Mapping[str, Any], *, source: str | None = None) -> T:
        """Build the instance that `to_dict` wrote.

        Args:
            values: `name` and settings.
            source: Where they were read, for the error message; the kind when None.

        Raises:
            ConfigurationError: If there is no `name`, a setting is missing, or a value is of another type or out of range.
            UnknownNameError: If no class has that name.
            UnknownKeyError: If the class has no such setting.
        """
        source = source or self.kind
        if not isinstance(values, Mapping) or "name" not in values:
            raise ConfigurationError(
                f"{source} must be a mapping with the {self.kind}'s 'name' and its settings, found {values!r}."
            )
        with naming(source):
            cls = self.get(values["name"])
        return from_mapping(cls, {key: value for key, value in values.items() if key != "name"}, source=source)
