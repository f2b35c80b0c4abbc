"""What can be asked of prepared rows: whether they are, how long, which tokens, and whether they are those of before."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute

from prism_plugin.core.history import HISTORY
from prism_plugin.data.columns import DRAFT_COLUMN, refuse_unread
from prism_plugin.data.origin import IN_MEMORY, Origin
from prism_plugin.errors import DataFormatError

PREPARED_COLUMNS = ("example_id", "input_ids", "maskable")
BESIDE_PREPARED = (DRAFT_COLUMN, "attention_mask")


def check_prepared(row: Mapping[str, Any], origin: Origin = IN_MEMORY) -> None:
    """Refuse a row that is not a prepared one.

    Raises:
        DataFormatError: If it is no mapping, a column is missing or read by nothing, or the columns differ in length.
    """
    if not isinstance(row, Mapping):
        raise DataFormatError(
            f"The rows of {origin} must be mappings of column names to values, found {type(row).__name__}; make them with "
            "`prepare_rows`."
        )
    if missing := [column for column in PREPARED_COLUMNS if column not in row]:
        raise DataFormatError(
            f"The rows of {origin} need {', '.join(PREPARED_COLUMNS)}, found no {', '.join(missing)}; make them with "
            "`prepare_rows`."
        )
    refuse_unread(row, (*PREPARED_COLUMNS, *BESIDE_PREPARED), "prepared rows", "drop what is not meant")
    for other in ("maskable", *BESIDE_PREPARED, *HISTORY):
        lengths = [len(row[name]) for name in ("input_ids", other) if row.get(name) is not None]
        if lengths[0] != lengths[-1]:
            raise DataFormatError(
                f"`input_ids` and `{other}` of a row must be equally long, found {lengths[0]} and {lengths[1]}."
            )


def longest_row(prepared: datasets.Dataset | Sequence[Mapping[str, Any]]) -> int:
    """Tokens of the longest prepared row."""
    if not isinstance(prepared, datasets.Dataset):
        return max(len(row["input_ids"]) for row in prepared)
    return max(
        pyarrow.compute.max(pyarrow.compute.list_value_length(chunk)).as_py() for chunk in _chunks(prepared, "input_ids")
    )


def id_range(prepared: datasets.Dataset | Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """The smallest and the largest token id of prepared rows, recorded drafts included."""
    if not isinstance(prepared, datasets.Dataset):
        ids = [int(one) for row in prepared for name in ("input_ids", DRAFT_COLUMN) for one in row.get(name, ())]
        return min(ids), max(ids)
    names = [name for name in ("input_ids", DRAFT_COLUMN) if name in prepared.column_names]
    ends = [
        pyarrow.compute.min_max(pyarrow.compute.list_flatten(chunk)).as_py()
        for name in names
        for chunk in _chunks(prepared, name)
    ]
    return min(end["min"] for end in ends), max(end["max"] for end in ends)


def foreign_mask(prepared: datasets.Dataset | Sequence[Mapping[str, Any]], mask_token_id: int) -> int | None:
    """Find the mask token of another model in recorded drafts: None where there is no sign of one.

    A sign is a token that stands in no row of the data and makes at least half of all tokens that differ from it, where no
    draft holds the model's own mask.
    """
    if isinstance(prepared, datasets.Dataset):
        clean, drafts = (
            np.concatenate([pyarrow.compute.list_flatten(chunk).to_numpy() for chunk in _chunks(prepared, name)])
            for name in ("input_ids", DRAFT_COLUMN)
        )
    else:
        clean, drafts = (np.concatenate([np.asarray(row[name]) for row in prepared]) for name in ("input_ids", DRAFT_COLUMN))
    different = drafts[drafts != clean]
    if not len(different) or (drafts == mask_token_id).any():
        return None
    ids, counts = np.unique(different, return_counts=True)
    commonest = int(ids[counts.argmax()])
    return commonest if 2 * counts.max() >= len(different) and commonest not in clean else None


def _chunks(prepared: datasets.Dataset, name: str) -> Iterator[pyarrow.ChunkedArray]:
    for batch in prepared.select_columns([name]).with_format("arrow").iter(batch_size=10_000):
        yield batch.column(name)


def fingerprint(prepared: datasets.Dataset) -> str:
    """Hash the contents of prepared rows: equal for equal rows, wherever and however they are stored."""
    digest = hashlib.sha256()
    for name in ("input_ids", "maskable", *(one for one in (DRAFT_COLUMN, *HISTORY) if one in prepared.column_names)):
        for chunk in _chunks(prepared, name):
            column = chunk.combine_chunks()
            digest.update(pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
            values = pyarrow.compute.list_flatten(column).to_numpy(zero_copy_only=False)
            digest.update(values.astype(np.float32 if values.dtype.kind == "f" else np.int64).tobytes())
    return digest.hexdigest()
