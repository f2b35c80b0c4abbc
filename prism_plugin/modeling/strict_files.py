"""Reads files that must be exactly what was written: a mismatch is one sentence with the file, the key and what was found."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prism_plugin.core.finite import first_not_finite
from prism_plugin.errors import PrismError, StoredStateError
from prism_plugin.parsing import parse_json
from prism_plugin.reader import from_mapping

T = TypeVar("T")
WRITTEN_BY = "`save_pretrained` or `export_sampler`"


def read_json(path: Path, written_by: str = WRITTEN_BY) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        path: The file.
        written_by: What writes it, for the error message.

    Raises:
        StoredStateError: If it is missing, damaged or holds something else.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path, written_by) from error
    except (OSError, ValueError) as error:
        raise StoredStateError(f"{path} must be a JSON file, but it cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise StoredStateError(f"{path} must hold a JSON object, found a {type(values).__name__}.")
    return values


def stored(cls: type[T], path: Path, values: Mapping[str, Any], optional: Collection[str] = ()) -> T:
    """Build what a file says that we wrote, in which every field has its place.

    Args:
        cls: A dataclass.
        path: The file.
        values: What it holds, or a part of it.
        optional: Fields that may be missing.

    Raises:
        StoredStateError: If a key is missing or unknown, or a value is not as it must be.
    """
    try:
        return from_mapping(cls, values, source=str(path), whole=True, optional=optional)
    except PrismError as error:
        raise StoredStateError(str(error)) from error


def read_tensors(path: Path, expected: Mapping[str, Tensor], *, any_float: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file that must hold exactly the expected keys, shapes and dtypes, and finite numbers.

    Args:
        path: The file.
        expected: What the model has.
        any_float: Where a floating-point number is expected, one of any precision will do.

    Raises:
        StoredStateError: If it does not; the sentence names the file, the key, what was expected and what was found.
    """
    if not path.is_file():
        raise _missing(path, WRITTEN_BY)
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StoredStateError(f"{path} must be a whole safetensors file, but it cannot be read: {error}.") from error
    for key in sorted(stored.keys() | expected.keys()):
        found, wanted = (tuple(tensors[key].shape) if key in tensors else "nothing" for tensors in (stored, expected))
        if found != wanted:
            raise StoredStateError(f"{path}: `{key}` should be {wanted}, found {found}.")
        has, needs = stored[key].dtype, expected[key].dtype
        if has != needs and not (any_float and has.is_floating_point and needs.is_floating_point):
            raise StoredStateError(f"{path}: `{key}` should be of dtype {_in_words(needs)}, found {_in_words(has)}.")
    require_finite(path, stored)
    return stored


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check weights that were read from `path`.

    Raises:
        StoredStateError: If one is NaN or infinite.
    """
    name = first_not_finite(tensors)
    if name is not None:
        raise StoredStateError(
            f"{path}: `{name}` must hold finite numbers, found NaN or infinity, and such weights are never loaded; take an "
            "older checkpoint, or train again at a lower learning rate."
        )


def _in_words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _missing(path: Path, written_by: str) -> StoredStateError:
    return StoredStateError(f"{path} is missing; a folder written by {written_by} has it.")
