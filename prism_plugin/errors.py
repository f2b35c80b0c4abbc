"""Every error that a user can cause. One root, `PrismError`; each class is also the built-in that fits.

A message is one sentence: what must hold, what was found, what to do.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

# Makes the error of a sentence about what was found: the caller knows which row it is, and what class of error fits.
Refuse = Callable[[str], Exception]


class PrismError(Exception):
    """Root of all errors that prism_plugin raises on purpose."""


class ConfigurationError(PrismError, ValueError):
    """A setting is out of range, or two settings cannot go together."""


class AdapterConfigError(ConfigurationError):
    """A config of PEFT cannot be used as it is set on a backbone."""


class UnknownKeyError(PrismError, ValueError):
    """A recipe, a JSON file or a mapping holds a key that nothing would read."""


class UnknownNameError(PrismError, KeyError):
    """A rule, schedule, preset, objective or backbone name that is not registered."""

    __str__ = Exception.__str__  # KeyError would print the sentence in quotes


class BackboneError(PrismError, ValueError):
    """A model cannot be used as a backbone as it is."""


class UnreachableBackboneError(BackboneError):
    """A backbone is not on this disk, and could not be loaded from the Hub."""


class MaskTokenError(PrismError, ValueError):
    """The mask token id is missing, outside the vocabulary, or sources disagree on it."""


class MissingQualityError(PrismError, ValueError):
    """A rule needs the quality head, but the model in use has none."""


class DetachedError(PrismError, AttributeError):
    """A model is used whose backbone was given back by `detach`."""


class DataFormatError(PrismError, ValueError):
    """A data file or a row of it cannot be used."""


class UnreachableDataError(DataFormatError):
    """A data set is not on this disk, and could not be loaded from the Hub."""


class StoredStateError(PrismError, ValueError):
    """A file on disk does not hold what it should, or belongs to another model."""


class SavingError(PrismError, OSError):
    """Files could not be written; what stood there before is unchanged."""


class NonFiniteError(PrismError, ArithmeticError):
    """A loss, a gradient, a weight or an answer of the model is NaN or infinite."""


class SamplingError(PrismError, ValueError):
    """A sampling request cannot be met."""


def first_line(error: BaseException) -> str:
    """What an error says in its first line, without the full stop; the name of its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had too little memory, which torch says in several classes and words."""
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "can't allocate memory" in text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest to one that is not known, in brackets after a space; nothing if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
