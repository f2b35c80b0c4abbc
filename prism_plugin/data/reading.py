"""Read raw rows from a local file or from the Hub; a bad line is one sentence that names it."""

import glob
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.compute
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from prism_plugin.data.columns import HARMLESS_COLUMNS
from prism_plugin.data.file_faults import CELLS_END, bad_json_line, require_utf8, require_whole_table
from prism_plugin.data.lines import ENCODING
from prism_plugin.data.origin import Origin
from prism_plugin.data.rows import as_dataset
from prism_plugin.errors import DataFormatError, UnreachableDataError
from prism_plugin.parsing import parse_json

_BUILDER_OF_SUFFIX = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
# How a date is written that was a text.
_DATE_MADE_TEXT = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
# What `datasets` was seen to raise on files and ids that it cannot read.
_READING_ERRORS = (
    datasets.exceptions.DatasetsError,
    ValueError,
    TypeError,
    KeyError,
    OSError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
)


def is_data_file(name: str) -> bool:
    """Whether a name is one of a data file, there or not, by its ending; no Hub data set is then looked for."""
    return Path(name).suffix in _BUILDER_OF_SUFFIX


def read_rows(path: str, *, split: str | None = None, revision: str | None = None) -> datasets.Dataset:
    """Read raw rows, with texts as they stand: each cell of a table is text, and so is a JSON string that looks like a date.

    Args:
        path: A local file (json, jsonl, csv, tsv, parquet, txt: one row a line, blank lines skipped) or a Hub data set id,
            with its configuration after a colon where it has several (`allenai/c4:en`). A file's name is taken literally:
            `*` and `[` stand for themselves.
        split: Split of the data set. A Hub data set needs one; a local file has only "train".
        revision: Revision of a Hub data set.

    Raises:
        DataFormatError: If there is nothing at `path`, the format is not known, a line cannot be read, the split does
            not exist, or no row is found.
        UnreachableDataError: If it is taken for a Hub data set and that cannot be loaded.
    """
    file = Path(path)
    is_local = file.exists() or is_data_file(path)
    rows = _read_file(file, split, revision) if is_local else _read_hub(path, split, revision)
    if not len(rows):
        raise _no_row(path)
    return rows


def _read_file(file: Path, split: str | None, revision: str | None) -> datasets.Dataset:
    builder = _BUILDER_OF_SUFFIX.get(file.suffix)
    if not file.is_file():
        raise DataFormatError(f"A data file must exist, found nothing readable as one at {file}.")
    if builder is None:
        raise DataFormatError(f"{file}: a data file must end in {', '.join(_BUILDER_OF_SUFFIX)}; rename or convert it.")
    if split not in (None, "train") or revision is not None:
        raise DataFormatError(f"{file} is a local file and has no split {split!r} or revision; leave both out.")
    if not file.stat().st_size:
        raise _no_row(file)
    try:
        if builder != "parquet":
            require_utf8(file)  # the reader of json would find out when a row is used
        return {"json": _read_json, "csv": _read_csv, "text": _read_text, "parquet": _read_parquet}[builder](file)
    except DataFormatError:
        raise
    except _READING_ERRORS as error:
        if "corresponds to no data" in str(error):  # an empty list, a header without a line
            raise _no_row(file) from error
        fault = bad_json_line(file) if builder == "json" else None
        raise DataFormatError(fault or f"{file} cannot be read as {builder}: {_first_line(error)}") from error


def _no_row(path: str | Path) -> DataFormatError:
    return DataFormatError(f"{path} holds no row; training needs at least one.")


def _load(builder: str, file: Path, **options: Any) -> datasets.Dataset:
    """Read one file, by its very name: `datasets` takes names for patterns, and the working directory too."""
    if "::" in str(file.absolute()):
        raise DataFormatError(
            f"{file}: a data file's path must not hold `::`, which stands for a file in an archive; rename it."
        )
    return datasets.load_dataset(builder, data_files=glob.escape(str(file.absolute())), split="train", **options)


def _read_parquet(file: Path) -> datasets.Dataset:
    return _load("parquet", file)


def _read_text(file: Path) -> datasets.Dataset:
    rows = _load("text", file, encoding=ENCODING)
    return rows.filter(lambda texts: [bool(text.strip()) for text in texts], batched=True, input_columns="text")


def _read_csv(file: Path) -> datasets.Dataset:
    """Read all cells as text. Left alone, the reader makes numbers of them, nothing of `NA`, and an index of a first column."""
    between = CELLS_END[file.suffix]
    names = require_whole_table(file, between)
    if not names:
        raise _no_row(file)
    return _load(
        "csv",
        file,
        encoding=ENCODING,
        sep=between,
        features=datasets.Features({name: datasets.Value("string") for name in names}),
        names=names,
        header=0,
        index_col=False,
        na_filter=False,
    )


def _read_json(file: Path) -> datasets.Dataset:
    """Read JSON Lines, or one list. What the reader of `datasets` would change is read by Python's own, which takes memory."""
    with file.open(encoding=ENCODING) as stream:
        while (first := stream.read(1)).isspace():
            pass
    if first == "[":
        try:
            return _of_list(parse_json(file.read_text(encoding=ENCODING)), file)
        except ValueError as error:
            raise DataFormatError(f"{file} cannot be read as json: {error}") from error
    rows = _load("json", file)
    if _made_dates(rows):
        return _of_list(_objects_in(file.read_text(encoding=ENCODING)), file)
    return rows


def _made_dates(rows: datasets.Dataset) -> bool:
    """Whether strings that look like dates may have been read as dates: and written as texts again, in another form, where
    an earlier part of the file has other texts in that column.
    """
    read = [name for name in rows.column_names if name not in HARMLESS_COLUMNS]
    tables = rows.select_columns(read).with_format("arrow").iter(batch_size=1000) if read else []
    return any(_holds_dates(chunk) for table in tables for column in table.columns for chunk in column.chunks)


def _holds_dates(array: pyarrow.Array) -> bool:
    kind = array.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return bool(pyarrow.compute.any(pyarrow.compute.match_substring_regex(array, _DATE_MADE_TEXT)).as_py())
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _holds_dates(array.flatten())
    if pyarrow.types.is_struct(kind):
        return any(map(_holds_dates, array.flatten()))
    return pyarrow.types.is_timestamp(kind)


def _of_list(entries: list[Any], file: Path) -> datasets.Dataset:
    """A list of objects, or of texts, as rows."""
    return as_dataset([{"text": one} if isinstance(one, str) else one for one in entries], Origin(str(file), counted=True))


def _objects_in(text: str) -> list[Any]:
    """The JSON values that stand in a text, one after another. That none gives a key twice has been seen."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


def _read_hub(path: str, split: str | None, revision: str | None) -> datasets.Dataset:
    name, _, configuration = path.partition(":")
    if split is None:
        raise DataFormatError(f"{path} is taken for a Hub data set, which needs `split`, for example `split: train`.")
    try:
        return datasets.load_dataset(name, configuration or None, split=split, revision=revision)
    except _READING_ERRORS as error:
        raise UnreachableDataError(
            f"{path} is neither a local file nor a Hub data set that could be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
