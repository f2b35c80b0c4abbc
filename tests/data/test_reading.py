import json

import datasets
import pyarrow.parquet as pq
import pytest

from prism_plugin.data import read_lines, read_rows
from prism_plugin.errors import DataFormatError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_every_format_gives_the_same_rows(tmp_path):
    rows = [{"text": "ab"}, {"text": "cd"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.csv").write_text("text\nab\ncd\n")
    (tmp_path / "rows.tsv").write_text("text\tid\nab\t1\ncd\t2\n")
    (tmp_path / "rows.txt").write_text("ab\n\ncd\n")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for suffix in ("jsonl", "json", "csv", "tsv", "txt", "parquet"):
        assert read_rows(str(tmp_path / f"rows.{suffix}")).select_columns("text").to_list() == rows, suffix


def test_every_cell_of_a_csv_file_is_text_as_it_stands(tmp_path):
    file = tmp_path / "rows.csv"
    rows = [["007", "1e5"], ["NA", "null"], ["", "True"], ["2024-01-01", '5" pipe'], ["a\nb", "c, d"], ["x" * 200_000, " y "]]
    quoted = ["\n".join(",".join(f'"{cell}"' if set(cell) & {",", "\n"} else cell for cell in row) for row in rows)]
    file.write_text("\ufeffprompt,completion\n" + "\n\n".join(quoted) + "\n", encoding="utf-8")
    assert read_rows(str(file)).to_list() == [dict(zip(("prompt", "completion"), row, strict=True)) for row in rows]


def test_texts_that_look_like_dates_are_texts(tmp_path):
    rows = [{"text": "2024-01-01"}, {"text": "2024-01-02"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read_rows(str(tmp_path / "a.jsonl")).to_list() == read_rows(str(tmp_path / "a.json")).to_list() == rows


def test_dates_in_a_later_part_of_a_long_file_are_texts(tmp_path):
    """The reader takes ten megabytes at a time; dates alone in one of them were written as 2024-01-01 00:00:00."""
    long = [{"messages": [{"content": "x" * 2**20}]}] * 10
    dates = [{"messages": [{"content": "2024-01-01"}]}, {"messages": [{"content": "2024-01-02"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*long, *dates])))
    assert read_rows(str(tmp_path / "a.jsonl")).to_list()[10:] == dates


def test_a_mark_at_the_beginning_is_no_text_and_a_form_feed_ends_no_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa\x0cb\u2028c\r\n \nd\x85".encode())
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "a"}\n'.encode())
    assert read_lines(tmp_path / "a.txt") == ["a\x0cb\u2028c", " ", "d\x85"]
    assert read_rows(str(tmp_path / "a.txt")).to_list() == [{"text": "a\x0cb\u2028c"}, {"text": "d\x85"}]
    assert read_rows(str(tmp_path / "a.jsonl")).to_list() == [{"text": "a"}]


@pytest.mark.parametrize("name", ["a[1].jsonl", "b*.csv", "v[2]/c?.txt", "[!d].parquet"])
def test_a_file_is_read_by_its_very_name(tmp_path, monkeypatch, name):
    tmp_path = tmp_path / "of[1]"
    tmp_path.mkdir()
    for other in ("a1.jsonl", "bx.csv", "v2/cd.txt", "e.parquet", name):
        file = tmp_path / other
        file.parent.mkdir(exist_ok=True)
        rows = [{"text": other}]
        write = {"jsonl": json.dumps(rows[0]), "csv": f"text\n{other}\n", "txt": other}
        if file.suffix == ".parquet":
            pq.write_table(datasets.Dataset.from_list(rows).data.table, file)
        else:
            file.write_text(write[file.suffix[1:]])
    assert read_rows(str(tmp_path / name)).to_list() == [{"text": name}]
    monkeypatch.chdir(tmp_path)
    assert read_rows(name).to_list() == [{"text": name}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, line 2: a line must be one JSON object, found '{\"text\": ' "),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl, line 2: a line must be one JSON object"),
        ("a.csv", "text,b\nx,1\ny,2,3\n", "a.csv, line 3: a line must have 2 cells like the first, found 3"),
        ("a.csv", "text\nhello, world\nsee, here\n", "a.csv, line 2: a line must have 1 cell like the first, found 2"),
        ("a.csv", "prompt,completion\na,b,c\nd,e,f\n", "a.csv, line 2: a line must have 2 cells like the first, found 3"),
        ("a.csv", 'text,b\n"x\ny",1\nz\n', "a.csv, line 4: a line must have 2 cells like the first, found 1"),
        ("a.csv", 'text,b\nx,1\n""\n', "a.csv, line 3: a line must have 2 cells like the first, found 1"),
        ("a.csv", 'text\nab\n"he said "hi""\n', "a.csv, line 3: the line cannot be read as CSV .* double the quotes inside"),
        ("a.csv", 'text\n"ab\n', "a.csv, line 2: the line cannot be read as CSV"),
        ("a.csv", "text,text\na,b\n", "a.csv, line 1: each column needs a name of its own, found 'text' twice"),
        ("a.tsv", "text\tb\nx, y\t1\t2\n", "a.tsv, line 2: a line must have 2 cells like the first, found 3; .* holds tabs in"),
        ("a.csv", b"text\nab\xff\n", "a.csv must be UTF-8 text, found byte 0xff at offset 7"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n', "a.jsonl, line 2: .* \\(text given twice\\)"),
        ("a.jsonl", '{"text": "a\u2028b"}\n{"text": \n', "a.jsonl, line 2: a line must be one JSON object"),
        ("a.json", '[{"text": "b", "text": "c"}]', "a.json cannot be read as json: text given twice"),
        ("a.json", "[1]", "a.json, row 1 must be a mapping of column names to values, .* found int"),
        ("a::b.jsonl", '{"text": "a"}\n', "a::b.jsonl: a data file's path must not hold `::`"),
        ("a.txt", b"ab\xff\n", "a.txt must be UTF-8 text, found byte 0xff at offset 2"),
        ("a.jsonl", b'{"text": "ab\xff"}\n', "a.jsonl must be UTF-8 text, found byte 0xff at offset 12"),
        ("a.jsonl", b'{"text": "' + b"a" * (2**20 - 11) + b'\xc3\x28"}\n', "found byte 0xc3 at offset 1048575"),
        ("a.txt", "", "a.txt holds no row"),
        ("a.json", "[]", "a.json holds no row"),
        ("a.csv", "text\n", "a.csv holds no row"),
        ("a.csv", "\n", "a.csv holds no row"),
        ("a.txt", "\n \n", "a.txt holds no row"),
        ("a.parquet", "abc", "a.parquet cannot be read as parquet"),
        ("a.xml", "abc", "a data file must end in .json, .jsonl, .csv, .tsv, .parquet, .txt"),
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
