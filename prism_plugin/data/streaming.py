"""Rows that are read one after the other, prepared as they come: for data that do not fit on a disk, or have no end."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from prism_plugin.data.columns import renamed
from prism_plugin.data.origin import IN_MEMORY, Origin
from prism_plugin.data.preparation import RowEncoder, check_columns, overlong_rows_are
from prism_plugin.data.prepared import check_prepared
from prism_plugin.data.settings import DataSettings
from prism_plugin.errors import DataFormatError

logger = logging.get_logger(__name__)


def is_stream(rows: Any) -> bool:
    """Whether rows can be read only one after the other."""
    return isinstance(rows, datasets.IterableDataset | torch.utils.data.IterableDataset)


def stream_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    mask_token_id: int,
    settings: DataSettings | None = None,
    origin: Origin = IN_MEMORY,
    with_history: bool = False,
) -> "RowStream":
    """Prepare a stream as `prepare_rows` does a data set, one row at a time. The arguments are those of `prepare_rows`.

    Args:
        rows: A `datasets.IterableDataset`, or torch's, of raw or of prepared rows.
        tokenizer: Needed by all kinds but `input_ids`.
        mask_token_id: Id of the mask token, which data must not contain.
        settings: Defaults when None.
        origin: What the rows are called in errors.
        with_history: As for `prepare_rows`.

    Raises:
        DataFormatError: If the first row of a `datasets.IterableDataset` cannot be used. torch's may be readable only once, so
            its rows are looked at when they are read.
        ConfigurationError: If the settings ask for what the tokenizer does not have.
    """
    if isinstance(rows, datasets.IterableDataset):
        rows = rows.with_format(None)  # plain lists and numbers, not tensors
    stream = RowStream(rows, tokenizer, mask_token_id, settings or DataSettings(), origin, with_history=with_history)
    stream.look()
    return stream


class RowStream(torch.utils.data.IterableDataset):
    """Prepared rows without an end: a source that ends is read again, in another order if its `set_epoch` makes one.

    The `example_id` of a row is its number, counted on from one reading of the source to the next, so that no two rows share
    their noise. Every process reads all rows, and accelerate gives each its own: with the same rows per step, they are those
    that one process would have.

    Attributes:
        check: Called with each prepared row and its number from 0, to refuse what the model cannot read.
    """

    def __init__(
        self,
        source: Iterable[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase | None,
        mask_token_id: int,
        settings: DataSettings,
        origin: Origin,
        *,
        with_history: bool = False,
    ) -> None:
        self.source, self.tokenizer, self.mask_token_id = source, tokenizer, mask_token_id
        self.settings, self.origin, self.with_history = settings, origin, with_history
        self.check: Callable[[Mapping[str, Any], int], None] | None = None
        self._encoder: RowEncoder | None = None
        self._names: dict[str, str] = {}  # the data's own -> ours

    def __iter__(self) -> Iterator[dict[str, Any]]:
        num_read = reading = 0
        while True:
            if hasattr(self.source, "set_epoch"):
                self.source.set_epoch(reading)
            before, given = num_read, False
            for index, row in self._read(before):
                num_read = index + 1
                if row is not None:
                    given = True
                    yield row
            if not given:
                raise self._gave_nothing(before, num_read)
            reading += 1

    def look(self) -> None:
        """Read the first row, and refuse it now if it cannot be used, where the source can be read more than once.

        Raises:
            DataFormatError: If it cannot.
        """
        if isinstance(self.source, datasets.IterableDataset):
            next(self.once(), None)

    def once(self) -> Iterator[dict[str, Any]]:
        """Read the source once, to its end.

        Raises:
            DataFormatError: If a row cannot be used.
        """
        return (row for _, row in self._read(0) if row is not None)

    def _read(self, first: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """The number of each row, from `first`, and the row, or None where it is left out."""
        for index, row in enumerate(self.source, start=first):
            if not isinstance(row, Mapping):
                raise DataFormatError(
                    f"{self.origin.row(index)} must be a mapping of column names to values, found {type(row).__name__}."
                )
            prepared = self._prepared(row, index)
            if prepared["input_ids"] and self.check is not None:
                self.check(prepared, index)
            yield index, prepared if prepared["input_ids"] else None

    def _prepared(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        if "example_id" in row:
            check_prepared(row, self.origin)
            return {**row, "example_id": index}
        if self._encoder is None:
            kind = check_columns(list(row), self.settings)
            names = renamed(list(row), self.settings.columns)
            sample = {names.get(name, name): value for name, value in row.items()}
            self._encoder = RowEncoder(
                kind, self.tokenizer, self.settings, self.mask_token_id, sample, self.origin, with_history=self.with_history
            )
            self._names = {name: names.get(name, name) for name in row}
        if row.keys() != self._names.keys():
            raise DataFormatError(
                f"{self.origin.row(index)}: all rows of a stream must have the columns of the first, "
                f"{', '.join(self._names)}, found {', '.join(row)}; give them the same."
            )
        cut_before = self._encoder.num_overlong
        prepared = self._encoder({self._names[name]: value for name, value in row.items()}, index)
        if self._encoder.num_overlong == 1 > cut_before:
            logger.warning(
                f"{self.origin.row(index)} is longer than `max_length` {self.settings.max_length}: it and others like it "
                f"{overlong_rows_are(self.settings)}."
            )
        return prepared

    def _gave_nothing(self, before: int, num_read: int) -> DataFormatError:
        if num_read > before:
            longest = self.settings.max_length
            return DataFormatError(
                f"{self.origin}: all {num_read - before} rows are longer than `max_length` {longest}; raise it."
            )
        if not before:
            return DataFormatError(f"{self.origin} holds no row; training needs at least one.")
        return DataFormatError(
            f"{self.origin} ended after {before} rows and cannot be read again; give a stream that can, or lower `max_steps`."
        )
