import json

import datasets
import pytest

from prism_plugin.data import read_rows
from prism_plugin.errors import DataFormatError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_every_format_gives_the_same_rows(tmp_path):
    rows = [{"text": "ab"}, {"text": "cd"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.csv").write_text("text\nab\ncd\n")
    (tmp_path / "rows.txt").write_text("ab\n\ncd\n")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for suffix in ("jsonl", "json", "csv", "txt", "parquet"):
        assert read_rows(str(tmp_path / f"rows.{suffix}")).to_list() == rows, suffix


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, line 2: a line must be one JSON object, found '{\"text\": ' "),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl, line 2: a line must be one JSON object"),
        ("a.csv", "text,b\nx,1\ny,2,3\n", "a.csv, line 3: a line must have 2 cells like the first, found 3"),
        ("a.txt", b"ab\xff\n", "a.txt must be UTF-8 text, found byte 0xff at offset 2"),
        ("a.jsonl", b'{"text": "ab\xff"}\n', "a.jsonl must be UTF-8 text, found byte 0xff at offset 12"),
        ("a.jsonl", b'{"text": "' + b"a" * (2**20 - 11) + b'\xc3\x28"}\n', "found byte 0xc3 at offset 1048575"),
        ("a.txt", "", "a.txt holds no row"),
        ("a.json", "[]", "a.json holds no row"),
        ("a.csv", "text\n", "a.csv holds no row"),
        ("a.txt", "\n \n", "a.txt holds no row"),
        ("a.parquet", "abc", "a.parquet cannot be read as parquet"),
        ("a.xml", "abc", "a data file must end in .json, .jsonl, .csv, .parquet, .txt"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_the_line(tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataFormatError, match=words):
        read_rows(str(file))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataFormatError, match="A data file must exist, found nothing readable as one at"):
        read_rows(str(tmp_path / "none.jsonl"))
    (tmp_path / "a.txt").write_text("ab\n")
    with pytest.raises(DataFormatError, match="is a local file and has no split 'test'"):
        read_rows(str(tmp_path / "a.txt"), split="test")
    with pytest.raises(DataFormatError, match="is taken for a Hub data set, which needs `split`"):
        read_rows("someone/something")


def test_a_hub_data_set_that_cannot_be_had_is_one_sentence(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataFormatError, match="is neither a local file nor a Hub data set that could be loaded"):
        read_rows("no-such-owner-of-data/no-such-set", split="train")


def test_a_damaged_parquet_file_is_not_taken_for_text(tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1\xff\xfe damaged")
    with pytest.raises(DataFormatError, match=r"rows\.parquet cannot be read as parquet: "):
        read_rows(str(file))
