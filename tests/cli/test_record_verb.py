"""`record` as a person types it: rows, models and samplers; what it refuses; and that it goes on."""

import json

import pyarrow.parquet
import pytest
import yaml

from prism_plugin.cli.main import main
from prism_plugin.evaluation import recorded_files

ROWS = ["the cat sat on the mat", "a dog ran", "an owl flew by night", "rain fell", "the sun rose", "we slept till noon"]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": row[:3], "completion": row[3:]}) + "\n" for row in ROWS))
    return file


def told(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_preset_on_rows_with_a_model_that_has_no_head(writer, data, tmp_path, capsys):
    options = ["--preset", "confidence", "--num-steps", "3", "--held-out", "0.4", "--batch-size", "2", "--device", "cpu"]
    command = ["record", "--data", str(data), "--output", str(tmp_path / "states"), *options, "--json"]
    assert main([*command, "--backbone", str(writer.parent / "backbone")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"] == [{"preset": "confidence", "num_steps": 3, "rows": 6, "right": 0, "states": 18}]
    assert {name: one["states"] for name, one in found["files"].items()} == {"states.parquet": 12, "held-out.parquet": 6}
    table = pyarrow.parquet.read_table(tmp_path / "states" / "states.parquet").to_pylist()
    assert {"age", "commit_confidence", "times_remasked"} < set(table[0])

    assert main([*command, "--backbone", str(writer.parent / "backbone")]) == 0  # the same again: it is there
    assert json.loads(capsys.readouterr().out) == found

    # an adapter gives the same, since it is trained in nothing yet; the folder is another recording's to it
    assert main([*command, "--adapter", str(writer), "--fresh"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main([*command, "--adapter", str(writer), "--seed", "1"]) == 2
    assert "holds another recording, which differs in seed" in told(capsys)


def test_a_recipe_goes_on_after_a_kill(writer, data, tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "recording.yaml"
    sources = [
        {"preset": "prism", "num_steps": 3, "settings": {"num_remask": 1}, "share": 0.5},
        {"preset": "random", "num_steps": 2, "share": 0.5, "of_right": 1, "of_wrong": 2},
    ]
    content = {"adapter": str(writer), "data": {"path": "rows.jsonl"}, "recording": {"sources": sources, "batch_size": 2}}
    recipe.write_text(yaml.safe_dump(content))
    commands = {
        name: ["record", "--recipe", str(recipe), "--device", "cpu", "--output", str(tmp_path / name)]
        for name in ("whole", "killed")
    }
    assert main(commands["whole"]) == 0
    written, put = [], recorded_files.RecordingFolder.put

    def killed(self, *args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(args)
        put(self, *args)

    monkeypatch.setattr(recorded_files.RecordingFolder, "put", killed)
    assert main(commands["killed"]) == 130
    assert "the same command goes on after them" in told(capsys)
    monkeypatch.setattr(recorded_files.RecordingFolder, "put", lambda self, *args: (written.append(args), put(self, *args)))
    assert main(commands["killed"]) == 0
    assert len(written) == 4  # two batches of either source
    whole, again = ((tmp_path / name / "states.parquet").read_bytes() for name in commands)
    assert whole == again
    assert main(commands["killed"]) == 0  # finished: it says what is there
    assert len(written) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Give `--recipe FILE`; or `--data`"),
        (["--data", "rows.jsonl", "--preset", "confidence", "--backbone", "b"], "`--preset` needs `--num-steps`"),
        (["--recipe", "none.yaml"], "none.yaml"),
        (["--recipe", "recording.yaml", "--num-steps", "3"], "go with `--preset`; a recipe's sources have their own"),
        (["--recipe", "recording.yaml"], "recording.yaml, `recording`: nothing reads 'source' (did you mean 'sources'?)"),
        (
            ["--data", "rows.jsonl", "--preset", "prism", "--num-steps", "3", "--backbone", "b"],
            "The preset 'prism' reads the quality head, which a backbone alone lacks; give `--adapter`.",
        ),
        (
            ["--data", "rows.jsonl", "--preset", "prism", "--num-steps", "3", "--set", "num_steps=2", "--adapter", "a"],
            "The preset 'prism' has no 'num_steps'",
        ),
    ],
)
def test_what_cannot_be_recorded_is_one_sentence(options, words, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recording.yaml").write_text("{backbone: b, data: {path: rows.jsonl}, recording: {source: []}}")
    assert main(["record", "--output", "states", *options]) == 2
    assert words in told(capsys)
    assert not (tmp_path / "states").exists()
