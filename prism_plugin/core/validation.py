"""Checks of settings, each one sentence. Called from `__post_init__`, so a rule that exists is a rule that can run."""

import math

from torch import Tensor

from prism_plugin.errors import ConfigurationError


def require_int(owner: object, name: str, *, minimum: int) -> None:
    """Check that the field `name` of `owner` is an integer of at least `minimum`.

    Raises:
        ConfigurationError: If it is not; True and False are no integers here.
    """
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(
            f"`{name}` of {type(owner).__name__} must be an integer of at least {minimum}, found {value!r}."
        )


def require_number(
    owner: object, name: str, within: str, *, low: float, high: float = math.inf, open_low: bool = False
) -> None:
    """Check that the field `name` of `owner` is a finite number in [low, high], or (low, high] when `open_low`.

    Args:
        owner: The dataclass being checked.
        name: Its field.
        within: The range in words for the message.
        low: Smallest value.
        high: Largest value.
        open_low: `low` itself is excluded.

    Raises:
        ConfigurationError: If it is not a number, is infinite or NaN, or lies outside.
    """
    value = getattr(owner, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (open_low and value == low):
        raise ConfigurationError(f"`{name}` of {type(owner).__name__} must be {within}, found {value!r}.")


def require_choice(owner: object, name: str, allowed: tuple[str, ...]) -> None:
    """Check that the field `name` of `owner` is one of the words allowed.

    Raises:
        ConfigurationError: If it is not.
    """
    value = getattr(owner, name)
    if value not in allowed:
        raise ConfigurationError(f"`{name}` of {type(owner).__name__} must be one of {', '.join(allowed)}, found {value!r}.")


def require_seed(seed: int | None, name: str) -> None:
    """Check a seed, if there is one.

    Args:
        seed: What was given.
        name: What the user calls it.

    Raises:
        ConfigurationError: If it is below 0, or above what numpy takes.
    """
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigurationError(f"`{name}` must be at least 0 and below 2**32, got {seed}.")


def require_ints(owner: object, name: str, *, minimum: int) -> tuple[int, ...]:
    """Check that the field `name` of `owner` lists integers of at least `minimum`, and give them as a tuple: JSON has lists.

    Raises:
        ConfigurationError: If it is no list or tuple, is empty, or holds something else.
    """
    value = getattr(owner, name)
    listed = isinstance(value, list | tuple) and len(value) > 0
    if not listed or any(isinstance(one, bool) or not isinstance(one, int) or one < minimum for one in value):
        raise ConfigurationError(
            f"`{name}` of {type(owner).__name__} must list integers of at least {minimum}, found {value!r}."
        )
    return tuple(value)


def require_tensors(function: str, **given: object) -> None:
    """Check that arguments are tensors, and not lists or what a tokenizer gives.

    Args:
        function: Whose arguments they are.
        **given: The arguments by name.

    Raises:
        ConfigurationError: If one is not.
    """
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(f"`{name}` of {function} must be a tensor, found {type(value).__name__}; make one of it.")
