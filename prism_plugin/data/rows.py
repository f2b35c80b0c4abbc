"""Rows in memory, as a caller may give them, to a data set."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from prism_plugin.data.origin import IN_MEMORY, Origin
from prism_plugin.errors import DataFormatError


def as_rows(rows: Any, origin: Origin = IN_MEMORY) -> Any:
    """Make rows of a list of texts, and of a DataFrame; anything else stays as it is.

    Raises:
        DataFormatError: If a DataFrame holds what has no place in a data set.
    """
    if hasattr(rows, "iloc") and hasattr(rows, "columns"):  # pandas', which is not imported for this
        with _unplaced(origin):
            return datasets.Dataset.from_pandas(rows, preserve_index=False)
    if isinstance(rows, list | tuple) and rows and all(isinstance(row, str) for row in rows):
        return [{"text": row} for row in rows]
    return rows


def require_list_of_rows(rows: Any, origin: Origin = IN_MEMORY) -> None:
    """Check that something is a list of rows, each a mapping.

    Args:
        rows: What was given.
        origin: What it is called in errors.

    Raises:
        DataFormatError: If it is not.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise DataFormatError(
            f"{origin} must be a list of rows, each a mapping of column names to values, found {_found(rows)}."
        )
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataFormatError(
                f"{origin.row(index)} must be a mapping of column names to values, such as {{'text': ...}}, found "
                f"{type(row).__name__}."
            )


def _found(rows: Any) -> str:
    """What was given in place of rows, and what to do about it."""
    name = type(rows).__name__
    if isinstance(rows, Mapping):
        splits = [str(key) for key, held in rows.items() if hasattr(held, "column_names")]
        if splits:
            return f"{name} with the splits {', '.join(splits)}; choose one, such as `data[{splits[0]!r}]`"
        return f"{name}; of columns by name make a data set, `datasets.Dataset.from_dict(...)`"
    if isinstance(rows, str | Path):
        return f"{name}; read a file with `prism_plugin.data.read_rows`"
    if isinstance(rows, datasets.IterableDataset):
        return f"{name}; a stream is prepared by `prism_plugin.data.stream_rows`"
    return f"{name}; make a list of its rows" if hasattr(rows, "__iter__") else name


def as_dataset(rows: Any, origin: Origin = IN_MEMORY) -> datasets.Dataset:
    """Make a data set of rows, of which each may lack columns that others have.

    Args:
        rows: A data set, a list of mappings or of texts, or a DataFrame.
        origin: What they are called in errors.

    Raises:
        DataFormatError: If they are something else, or a value has no place in a data set.
    """
    rows = as_rows(rows, origin)
    if isinstance(rows, datasets.Dataset):
        # Plain lists and numbers, not tensors; a transform of the user's own is what makes the rows, so it stays.
        return rows if rows.format["type"] == "custom" else rows.with_format(None)
    require_list_of_rows(rows, origin)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with _unplaced(origin):
        return datasets.Dataset.from_list(
            [{column: row.get(column) for column in columns} for row in rows], on_mixed_types="use_json"
        )


@contextmanager
def _unplaced(origin: Origin) -> Iterator[None]:
    """Say in one sentence that a value has no place in a data set.

    Raises:
        DataFormatError: If the library says so within.
    """
    try:
        yield
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataFormatError(
            f"{origin} must hold texts, numbers, and lists and mappings of them, found something else: "
            f"{str(error).splitlines()[0]}"
        ) from error
