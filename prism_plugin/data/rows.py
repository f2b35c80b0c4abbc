"""Rows in memory, as a caller may give them, to a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from prism_plugin.errors import DataFormatError


def require_list_of_rows(rows: Any, name: str) -> None:
    """Check that something is a list of rows, each a mapping.

    Args:
        rows: What was given.
        name: What it is called in errors.

    Raises:
        DataFormatError: If it is not.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        cure = ""
        if isinstance(rows, Mapping):
            cure = "; a dict holds columns or splits, so choose a split, or make a list of rows"
        elif isinstance(rows, str | Path):
            cure = "; read a file with `read_rows`"
        raise DataFormatError(
            f"`{name}` must be a list of rows, each a mapping of column names to values, found {type(rows).__name__}{cure}."
        )
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataFormatError(
                f"Row {index} of `{name}` must be a mapping of column names to values, such as {{'text': ...}}, found "
                f"{type(row).__name__}."
            )


def as_dataset(rows: datasets.Dataset | Sequence[Mapping[str, Any]], name: str = "rows") -> datasets.Dataset:
    """Make a data set of rows, of which each may lack columns that others have.

    Args:
        rows: A data set, or a list of mappings.
        name: What they are called in errors.

    Raises:
        DataFormatError: If they are something else, or a value has no place in a data set.
    """
    if isinstance(rows, datasets.Dataset):
        # Plain lists and numbers, not tensors; a transform of the user's own is what makes the rows, so it stays.
        return rows if rows.format["type"] == "custom" else rows.with_format(None)
    require_list_of_rows(rows, name)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    try:
        return datasets.Dataset.from_list(
            [{column: row.get(column) for column in columns} for row in rows], on_mixed_types="use_json"
        )
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataFormatError(
            f"`{name}` must hold texts, numbers, and lists and mappings of them, found something else: "
            f"{str(error).splitlines()[0]}"
        ) from error
