"""Reads files that must be exactly what was written: a mismatch is one sentence with the file, the key and what was found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prism_plugin.errors import StoredStateError
from prism_plugin.parsing import parse_json


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        StoredStateError: If it is missing, damaged or holds something else.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError) as error:
        raise StoredStateError(f"{path} must be a JSON file, but it cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise StoredStateError(f"{path} must hold a JSON object, found a {type(values).__name__}.")
    return values


def require_keys(path: Path, values: Mapping[str, Any], expected: set[str], optional: set[str] = frozenset()) -> None:
    """Check that a mapping read from `path` has the expected keys and no other; the optional ones may be missing.

    Raises:
        StoredStateError: If one is missing or unknown.
    """
    for key in sorted(set(values) ^ expected):
        if key not in values and key not in optional:
            raise StoredStateError(f"{path}: `{key}` must be there, found nothing.")
        if key not in expected:
            raise StoredStateError(f"{path}: `{key}` is not a key that anything reads; known: {', '.join(sorted(expected))}.")


def read_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a safetensors file that must hold exactly the expected keys and shapes.

    Raises:
        StoredStateError: If it does not; the sentence names the file, the key, what was expected and what was found.
    """
    if not path.is_file():
        raise _missing(path)
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StoredStateError(f"{path} must be a whole safetensors file, but it cannot be read: {error}.") from error
    for key in sorted(stored.keys() | expected.keys()):
        found, wanted = (tuple(tensors[key].shape) if key in tensors else "nothing" for tensors in (stored, expected))
        if found != wanted:
            raise StoredStateError(f"{path}: `{key}` should be {wanted}, found {found}.")
    return stored


def _missing(path: Path) -> StoredStateError:
    return StoredStateError(f"{path} is missing; a folder written by `save_pretrained` or `export_sampler` has it.")
