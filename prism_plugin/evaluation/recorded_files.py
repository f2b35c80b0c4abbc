"""The folder of a recording: what was asked, the chunks while it goes on, and the recorded rows at the end, as parquet."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.recording import Chunk, Recorder, Source, States
from prism_plugin.parsing import parse_json
from prism_plugin.reader import differing
from prism_plugin.writing import remove_leftovers, write_bytes, write_text

ASKED_FILE = "recording.json"
TRAIN_FILE, HELD_OUT_FILE = "states.parquet", "held-out.parquet"
_CHUNKS = "chunks"
# What a process that was killed at its beginning leaves in a folder.
_OURS = re.compile(rf"\.{re.escape(ASKED_FILE)}-[0-9a-f]{{32}}|{_CHUNKS}")
_HISTORY = {"age": "int16", "commit_confidence": "float32", "times_remasked": "int16"}


class RecordingFolder:
    """Holds one recording, finished or on its way.

    Args:
        path: The folder, there or not.
        asked: What is recorded, of which rows, by which model; as it is written to `recording.json`.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path, self._asked = path, dict(asked)

    def require_own(self, *, fresh: bool = False) -> None:
        """Check that the folder holds this recording or nothing; with `fresh`, any recording or nothing.

        Raises:
            ConfigurationError: If it holds another recording, or files of somebody else.
        """
        if (self.path / ASKED_FILE).exists():
            if fresh:
                return
            different = differing(self._stored().get("asked", {}), self._asked)
            if different:
                raise ConfigurationError(
                    f"{self.path} holds another recording, which differs in {', '.join(different)}; choose another `--output`, "
                    "or start over with --fresh, which deletes what is recorded there."
                )
            if self.is_finished:
                shutil.rmtree(self.path / _CHUNKS, ignore_errors=True)  # killed before they were gone
        elif self.path.is_dir() and any(not _OURS.fullmatch(one.name) for one in self.path.iterdir()):
            raise ConfigurationError(
                f"`--output` {self.path} holds files of something else and no {ASKED_FILE}; choose an empty or a new folder."
            )

    def begin(self, *, fresh: bool) -> None:
        """Write down what is recorded here; with `fresh`, after an older recording is taken away."""
        if fresh and self.path.exists():
            self._write_down({})  # first, so that what is half gone is not taken for a finished recording
            for name in (HELD_OUT_FILE, TRAIN_FILE):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / _CHUNKS, ignore_errors=True)
        if not self.is_finished:
            self._write_down({})  # which makes the folder, and says whose it is
            (self.path / _CHUNKS).mkdir(exist_ok=True)

    def _write_down(self, found: Mapping[str, Any]) -> None:
        write_text(self.path / ASKED_FILE, json.dumps({"asked": self._asked, **found}, indent=2) + "\n")

    def _stored(self) -> dict[str, Any]:
        try:
            stored = parse_json((self.path / ASKED_FILE).read_text(encoding="utf-8"))
        except ValueError:
            stored = None
        if not isinstance(stored, dict) or not all(isinstance(stored.get(name, {}), dict) for name in ("asked", "found")):
            raise ConfigurationError(f"{self.path / ASKED_FILE} cannot be read as a recording's; start over with --fresh.")
        return stored

    @property
    def is_finished(self) -> bool:
        """Whether the recorded rows are there, and what was found of them is written down, which comes last."""
        return (self.path / ASKED_FILE).exists() and "found" in self._stored()

    @property
    def found(self) -> dict[str, Any]:
        """What a finished recording holds."""
        return self._stored()["found"]

    def has(self, chunk: Chunk) -> bool:
        """Whether a chunk is recorded."""
        return self._file_of(chunk).exists()

    def put(self, chunk: Chunk, states: States, right: int) -> None:
        """Keep what was recorded of a chunk."""
        columns: dict[str, Any] = {"number": pyarrow.array(states.number, pyarrow.int64())}
        for name in ("draft_ids", *_HISTORY):
            values = getattr(states, name)
            if values:
                columns[name] = _lists(values)
        table = pyarrow.table(columns).replace_schema_metadata({"right": str(right)})
        _write(self._file_of(chunk), table)

    def finish(self, recorder: Recorder) -> None:
        """Put the chunks together, in an order that does not depend on who recorded them, and write the rows.

        Raises:
            ConfigurationError: If no state was kept.
        """
        remove_leftovers(self.path, ASKED_FILE, TRAIN_FILE, HELD_OUT_FILE)
        kept, places, sources = States(), list[float](), [_of_source(one) for one in recorder.recording.sources]
        for chunk in recorder.chunks:
            table = pyarrow.parquet.read_table(self._file_of(chunk))
            numbers = table["number"].to_pylist()
            kept.number.extend(numbers)
            places += [(number - chunk.first) / (chunk.last - chunk.first) for number in numbers]
            for name in ("draft_ids", *_HISTORY):
                if name in table.column_names:
                    getattr(kept, name).extend(_tensors(table[name]))
            about = {"rows": chunk.end - chunk.begin, "right": int(table.schema.metadata[b"right"]), "states": len(numbers)}
            for name, count in about.items():
                sources[chunk.source][name] += count
        if not kept.number:
            raise ConfigurationError(
                "No state was kept, since every run ended as one of which none is wanted; raise `of_right` or `of_wrong`."
            )
        order = np.lexsort((kept.number, places)).tolist()  # stable: the states of a row stay in their order
        states = States(**{name: [values[index] for index in order] if values else [] for name, values in vars(kept).items()})
        columns = recorder.finished(states)
        training = sum(place < 1 - recorder.recording.held_out for place in places)
        parts = {TRAIN_FILE: slice(0, training), HELD_OUT_FILE: slice(training, None)}
        if not recorder.recording.held_out:
            del parts[HELD_OUT_FILE]
        ids = _ids_type(max(int(ids.max()) for name in ("input_ids", "draft_ids") for ids in columns[name]))
        files = {}
        for name, part in parts.items():
            own = {column: values[part] for column, values in columns.items()}
            _write_rows(self.path / name, own, ids)
            files[name] = {"states": len(own["draft_ids"]), "with_a_wrong_token": recorder.count_wrong(own)}
        self._write_down({"found": {"sources": sources, "files": files}})
        shutil.rmtree(self.path / _CHUNKS)

    def _file_of(self, chunk: Chunk) -> Path:
        return self.path / _CHUNKS / f"{chunk.source}-{chunk.begin:09d}.parquet"


def _of_source(source: Source) -> dict[str, Any]:
    return {"preset": source.preset, "num_steps": source.num_steps, "rows": 0, "right": 0, "states": 0}


def _lists(values: Sequence[torch.Tensor]) -> pyarrow.Array:
    offsets = np.cumsum([0, *map(len, values)])
    return pyarrow.ListArray.from_arrays(
        pyarrow.array(offsets, pyarrow.int32()), pyarrow.array(torch.cat(list(values)).numpy())
    )


def _tensors(column: pyarrow.ChunkedArray) -> list[torch.Tensor]:
    return [torch.tensor(values) for values in column.to_numpy(zero_copy_only=False)]


def _ids_type(largest: int) -> str:
    return next(f"int{bits}" for bits in (8, 16, 32) if largest < 2 ** (bits - 1))


def _write_rows(path: Path, columns: Mapping[str, Sequence[torch.Tensor]], ids: str) -> None:
    types = {name: ids if name.endswith("_ids") else _HISTORY.get(name, "bool") for name in columns}
    features = datasets.Features({name: datasets.List(datasets.Value(one)) for name, one in types.items()})
    rows = datasets.Dataset.from_dict({name: [one.tolist() for one in values] for name, values in columns.items()}, features)
    _write(path, rows.data.table)


def _write(path: Path, table: pyarrow.Table) -> None:
    # by hand, since `to_parquet` always takes snappy, under which a row costs half as much again
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())
