"""Read raw rows from a local file or from the Hub; a bad line is one sentence that names it."""

import codecs
import csv
import json
from pathlib import Path

import datasets
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from prism_plugin.errors import DataFormatError, UnreachableDataError

_BUILDER_OF_SUFFIX = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
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
    """Read raw rows.

    Args:
        path: A local file (json, jsonl, csv, parquet, txt: one row a line, blank lines skipped) or a Hub data set id,
            with its configuration after a colon where it has several (`allenai/c4:en`).
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
        raise DataFormatError(f"{path} holds no row; training needs at least one.")
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
        raise DataFormatError(f"{file} holds no row; training needs at least one.")
    if builder == "json" and (fault := _not_utf8(file)):
        raise DataFormatError(fault)  # the reader of json would find out when a row is used
    try:
        rows = datasets.load_dataset(builder, data_files=str(file), split="train")
    except _READING_ERRORS as error:
        if "corresponds to no data" in str(error):  # an empty list, a header without a line
            raise DataFormatError(f"{file} holds no row; training needs at least one.") from error
        raise DataFormatError(
            _bad_line(file, builder) or f"{file} cannot be read as {builder}: {_first_line(error)}"
        ) from error
    if builder == "text":
        rows = rows.filter(lambda texts: [bool(text.strip()) for text in texts], batched=True, input_columns="text")
    return rows


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


def _not_utf8(file: Path) -> str | None:
    """Find the first byte that is no UTF-8, for the message; None when all are."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            held = len(decoder.getstate()[0])  # bytes of the last chunk that a character of this one begins with
            try:
                decoder.decode(chunk, final=len(chunk) < 1 << 20)
            except UnicodeDecodeError as error:
                at = before - held + error.start
                return f"{file} must be UTF-8 text, found byte {error.object[error.start]:#x} at offset {at}."
            before += len(chunk)
    return None


def _bad_line(file: Path, builder: str) -> str | None:
    """Find the first line that cannot be read, for the message; None when the fault lies elsewhere."""
    if builder not in ("json", "csv", "text"):
        return None
    try:
        if fault := _not_utf8(file):
            return fault
        text = file.read_text(encoding="utf-8")
    except OSError:
        return None
    if builder == "json" and not text.lstrip().startswith("["):
        keys: set[str] | None = None
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                return f"{file}, line {number}: a line must be one JSON object, found {line[:60]!r} ({error.msg})."
            if not isinstance(row, dict):
                return f"{file}, line {number}: a line must be one JSON object, found {line[:60]!r}."
            if keys is not None and set(row) != keys:
                return f"{file}, line {number}: every line must have the same keys {sorted(keys)}, found {sorted(row)}."
            keys = set(row)
    if builder == "csv":
        lines = list(csv.reader(text.splitlines()))
        for number, cells in enumerate(lines, start=1):
            if cells and len(cells) != len(lines[0]):
                return f"{file}, line {number}: a line must have {len(lines[0])} cells like the first, found {len(cells)}."
    return None
