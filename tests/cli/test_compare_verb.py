"""`compare` as a user calls it: what it measures, that it goes on where it was cut off, and what it refuses before any work."""

import csv
import fcntl
import json
import re
import shutil
from dataclasses import dataclass, field

import pytest
import torch
import yaml

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.evaluation import comparison as work
from prism_plugin.evaluation.compare import answer_rows, read_settings
from prism_plugin.evaluation.comparison_file import read_comparison
from prism_plugin.evaluation.tasks import TASKS, Sudoku
from prism_plugin.evaluation.tasks.sudoku import MASK_TOKEN_ID, VOCAB_SIZE, format_grid
from prism_plugin.evaluation.tasks.sudoku_grids import NUM_CELLS, make_puzzles
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone

BYTES = ("results.json", "results.csv", "tables.md", "sudoku/tiny/sampler.yaml", "comparison.json")
CONTENT = {
    "tasks": {
        "sudoku": {
            "task": {"name": "sudoku"}, "validation": "validation.txt", "test": "test.txt", "adapters": {"tiny": "weights"},
            "budgets": [2, 4], "more_steps": {"prism": [5]},
        }
    },
    "seeds": [4, 7],
    "presets": {
        "confidence": [{}, {"temperature": 1.0}],
        "prism": [{"num_remask": 1}, {"temperature": 0.5}],
        "threshold": [{"threshold": 0.2}, {"threshold": 0.4}],
    },
    "differences": [["prism", "confidence"], ["threshold", "confidence"]],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a tiny adapter, puzzles with few blanks, so that some are solved, and a comparison of them."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    tiny_backbone(vocab_size=VOCAB_SIZE, max_position_embeddings=NUM_CELLS).save_pretrained(folder / "backbone")
    model = attach_quality_head(load_backbone(folder / "backbone"), PrismConfig(mask_token_id=MASK_TOKEN_ID))
    torch.nn.init.normal_(model.quality_head.layers[-1].weight)
    model.save_pretrained(folder / "weights")
    puzzles = [format_grid(cells) for blanks in (1, 6) for cells in make_puzzles(8, seed=blanks, num_blanks=blanks)[0]]
    (folder / "validation.txt").write_text("\n".join(puzzles[::4]) + "\n")
    (folder / "test.txt").write_text("\n".join(puzzles[:7] + puzzles[9:12]) + "\n")
    shutil.copy(folder / "validation.txt", folder / "copy.txt")
    (folder / "compare.yaml").write_text(yaml.safe_dump(CONTENT))
    return folder


@pytest.fixture(scope="module")
def done(made):
    """The comparison, run in one go."""
    assert cli.main(["compare", str(made / "compare.yaml"), "--output", str(made / "out")]) == 0
    return made / "out"


def test_figures_are_those_of_the_samplers(made, done):
    results = json.loads((done / "results.json").read_text())
    (cell,) = results["comparisons"]
    assert [(one["preset"], one["num_steps"]) for one in cell["presets"]] == [
        ("confidence", 2), ("confidence", 4), ("prism", 2), ("prism", 4), ("prism", 5), ("threshold", 2), ("threshold", 4),
    ]  # fmt: skip
    model, task = PrismModel.from_pretrained(made / "weights"), Sudoku()
    rows = task.rows(made / "test.txt")
    by_row = {}
    for one in cell["presets"]:
        draws = one["preset"] == "prism" or one["settings"].get("temperature", 0) > 0
        assert one["seeds"] == ([4, 7] if draws else [4])
        assert one["reads_head"] == (one["preset"] == "prism")
        sampler = RemaskingSampler.from_preset(one["preset"], model, num_steps=one["num_steps"], **one["settings"])
        runs = [answer_rows(task, sampler, rows, seed) for seed in one["seeds"]]
        solved = torch.stack([run.figures["success"].total.double() for run in runs]).mean(0)
        by_row[one["preset"], one["num_steps"]] = solved
        stderr = solved.std(correction=0).item() / len(rows) ** 0.5
        assert one["test"]["figures"]["success"] == pytest.approx({"value": solved.mean().item(), "stderr": stderr})
        forwards = torch.stack([run.num_forward_passes.double() for run in runs]).mean().item()
        assert one["test"]["num_forward_passes"] == pytest.approx(forwards)
        assert one["test"]["num_positions"] == pytest.approx(forwards * NUM_CELLS)
        tried = [t for t in cell["trials"] if (t["preset"], t["num_steps"]) == (one["preset"], one["num_steps"])]
        assert len(tried) == 2
        assert one["settings"] == max(tried, key=lambda t: t["validation"]["figures"]["success"]["value"])["settings"]
    assert max(solved.max() for solved in by_row.values()) > 0, "nothing is solved, so nothing is shown"
    assert [(one["preset"], one["num_steps"]) for one in cell["differences"]] == [
        ("prism", 2), ("prism", 4), ("threshold", 2), ("threshold", 4)
    ]  # fmt: skip
    for one in cell["differences"]:
        off = by_row[one["preset"], one["num_steps"]] - by_row[one["minus"], one["num_steps"]]
        paired = {"value": off.mean().item(), "stderr": off.std(correction=0).item() / len(rows) ** 0.5}
        assert one["figures"]["success"] == pytest.approx(paired, abs=1e-12)
    assert [one["mean_forward_passes"] for one in cell["best_within"]] == [2, 4]
    assert all(one["with_head"]["preset"] == "prism" != one["without"]["preset"] for one in cell["best_within"])


def test_files_hold_the_same_and_eval_reads_the_settings(made, done, capsys):
    (cell,) = json.loads((done / "results.json").read_text())["comparisons"]
    with (done / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["preset"], int(line["num_steps"])) for line in lines] == [
        (e["preset"], e["num_steps"]) for e in cell["presets"]
    ]
    assert [float(line["success"]) for line in lines] == [e["test"]["figures"]["success"]["value"] for e in cell["presets"]]
    with (done / "seconds.csv").open() as file:
        assert [float(line["seconds"]) > 0 for line in csv.DictReader(file)] == [True] * len(lines)
    settings = read_settings(done / "sudoku" / "tiny" / "sampler.yaml")
    assert settings["prism"][5] == next(e for e in cell["presets"] if e["num_steps"] == 5)["settings"]
    again = ["compare", str(made / "compare.yaml"), "--output", str(done)]
    before = {name: (done / name).read_bytes() for name in (*BYTES, "runs.jsonl")}
    assert cli.main([*again, "--presets", "threshold", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {one["preset"] for one in printed["comparisons"][0]["presets"]} == {"confidence", "prism", "threshold"}
    assert len(printed["seconds"]) == 7
    assert cli.main(again) == 0
    assert before == {name: (done / name).read_bytes() for name in before}
    assert "10 puzzles" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.35, 0.99])
def test_what_was_cut_off_goes_on_and_ends_with_the_same_bytes(made, done, tmp_path, monkeypatch, share):
    """A kill leaves the header and the log up to some byte, and whatever was being written beside."""
    log = (done / "runs.jsonl").read_bytes()
    kept = log[: int(share * len(log))]
    shutil.copy(done / "comparison.json", tmp_path)
    (tmp_path / "runs.jsonl").write_bytes(kept)
    (tmp_path / f".results.json-{'0' * 32}").write_text("half")
    made_again = []
    monkeypatch.setattr(work, "answer_rows", lambda *args, **options: made_again.append(1) or answer_rows(*args, **options))
    assert cli.main(["compare", str(made / "compare.yaml"), "--output", str(tmp_path)]) == 0
    assert len(made_again) == log.count(b"\n") - kept.count(b"\n")
    for name in BYTES:
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes(), name
    assert not list(tmp_path.glob(".*"))


def test_several_adapters_are_measured_apart(made, tmp_path, capsys):
    """Two that differ in the head, which this preset does not read."""
    folder = shutil.copytree(made, tmp_path / "made")
    model = PrismModel.from_pretrained(folder / "weights")
    torch.nn.init.zeros_(model.quality_head.layers[-1].weight)
    model.save_pretrained(folder / "other")
    (folder / "compare.yaml").write_text(yaml.safe_dump(changed((*SUDOKU, "adapters"), {"tiny": "weights", "zero": "other"})))
    output = tmp_path / "out"
    assert cli.main(["compare", str(folder / "compare.yaml"), "--output", str(output), "--presets", "threshold", "--json"]) == 0
    one, other = json.loads(capsys.readouterr().out)["comparisons"]
    assert (one.pop("adapter"), other.pop("adapter")) == ("tiny", "zero")
    assert one == other
    assert one["differences"] == one["best_within"] == []
    assert (output / "runs.jsonl").read_bytes().count(b"\n") == 2 * (4 + 2)
    assert len({*output.glob("sudoku/*/sampler.yaml")}) == 2


def test_a_backbone_that_was_moved_and_code_of_its_own_are_told_to_the_loader(made, tmp_path, monkeypatch):
    folder = shutil.copytree(made, tmp_path / "made")
    shutil.copytree(folder / "backbone", folder / "moved")
    content = changed((*SUDOKU, "adapters"), {"old": "weights", "new": "weights"})
    content["tasks"]["sudoku"]["backbones"] = {"new": "moved"}
    (folder / "compare.yaml").write_text(yaml.safe_dump(content))
    reads = read_comparison(folder / "compare.yaml").reads
    assert reads["the backbone of the adapter new of sudoku"] == folder / "moved"
    load, loaded = PrismModel.from_pretrained, []

    def noted(place, backbone, **options):
        loaded.append((place, backbone, options["trust_remote_code"]))
        return load(place, backbone, **options)

    monkeypatch.setattr(PrismModel, "from_pretrained", noted)
    options = ["--presets", "threshold", "--limit", "1", "--trust-remote-code"]
    assert cli.main(["compare", str(folder / "compare.yaml"), "--output", str(tmp_path / "out"), *options]) == 0
    assert {*loaded[:2]} == {(folder / "weights", None, True), (folder / "weights", folder / "moved", True)}


def test_adapters_and_tasks_that_come_later_keep_the_old_runs(made, done, tmp_path):
    folder = shutil.copytree(made, tmp_path / "made")
    output, before = folder / "out", (folder / "out" / "runs.jsonl").read_bytes()
    model = PrismModel.from_pretrained(folder / "weights")
    torch.nn.init.zeros_(model.quality_head.layers[-1].weight)
    model.save_pretrained(folder / "other")
    content = changed((*SUDOKU, "adapters"), {"tiny": "weights", "zero": "other"})
    content["tasks"]["turned"] = {**CONTENT["tasks"]["sudoku"], "validation": "test.txt", "test": "validation.txt"}
    (folder / "later.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    arguments = ["compare", str(folder / "later.yaml"), "--output", str(output), "--presets", "threshold"]
    assert cli.main(arguments) == 0
    told = json.loads((output / "results.json").read_text())["comparisons"]
    assert [{one["preset"] for one in cell["presets"]} for cell in told][:2] == [{*CONTENT["presets"]}, {"threshold"}]
    after = (output / "runs.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") > before.count(b"\n") + (4 + 2), "of the adapter, and of the task what no other had asked"
    about = (output / "comparison.json").read_bytes()
    assert {name: list(task["adapters"]) for name, task in json.loads(about)["tasks"].items()} == {
        "sudoku": ["tiny", "zero"],
        "turned": ["tiny"],
    }
    assert cli.main(["compare", str(folder / "compare.yaml"), "--output", str(output)]) == 0
    assert (output / "comparison.json").read_bytes() == about
    assert (output / "runs.jsonl").read_bytes() == after


def changed(path, value):
    content = json.loads(json.dumps(CONTENT))
    *owners, last = path
    target = content
    for key in owners:
        target = target[key]
    target[last] = value
    return content


SUDOKU = ("tasks", "sudoku")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("budget",), [3], "compare.yaml: nothing reads 'budget'"),
        ((*SUDOKU, "budget"), [3], "compare.yaml, `tasks`, `sudoku`: nothing reads 'budget' (did you mean 'budgets'?)"),
        ((*SUDOKU, "task"), {"name": "sudoko"}, "No task is called 'sudoko' (did you mean 'sudoku'?)"),
        ((*SUDOKU, "task"), {"name": "sudoku", "side": 9}, "`task`: nothing reads 'side'"),
        ((*SUDOKU, "budgets"), [], "`budgets` of TaskSection must list integers of at least 1"),
        ((*SUDOKU, "budgets"), [2, 2], "`budgets` must hold each only once, found 2 twice"),
        (
            (*SUDOKU, "more_steps"),
            {"prism": [4]},
            "`budgets` and `more_steps` of `prism` must hold each only once, found 4 twice",
        ),
        ((*SUDOKU, "more_steps"), {"prsm": [9]}, "`more_steps` of sudoku must name presets of this file, found 'prsm'"),
        ((*SUDOKU, "test"), "validation.txt", "`validation` and `test` must be other rows"),
        ((*SUDOKU, "test"), "copy.txt", "`validation` and `test` must be other rows"),
        ((*SUDOKU, "test"), "tests.txt", "`test` must be a file of puzzles"),
        ((*SUDOKU, "adapters"), {"tiny": "./nothing"}, "`tiny` must be a folder with an adapter or an id on the Hub"),
        (
            (*SUDOKU, "backbones"),
            {"tny": "backbone"},
            "`backbones` must name `adapters` of this task, found 'tny' (did you mean",
        ),
        (
            (*SUDOKU, "backbones"),
            {"tiny": "./nothing"},
            "`backbones`: `tiny` must be a folder with a backbone or an id on the Hub",
        ),
        ((*SUDOKU, "adapters"), {"a/b": "weights"}, "names of `adapters` are letters"),
        (("presets", "prism"), [{}], "every preset must have as many trials as the others, at least one"),
        (("presets", "prism"), [{}, {}], "`presets`, `prism` must hold each only once"),
        (("presets", "prsm"), [{}, {}], "No preset is called 'prsm' (did you mean 'prism'?)"),
        (("presets", "prism"), [{}, {"threshold": 0.5}], "{'threshold': 0.5}, 2 steps: The preset 'prism' has no 'threshold'"),
        (
            ("presets", "prism"),
            [{}, {"temperature": -1}],
            "`temperature` of SamplerSettings must be a finite number of at least 0",
        ),
        (("seeds",), [1, 1], "`seeds` must hold each only once"),
        (("seeds",), [2**32], "`seeds` must be at least 0 and below 2**32"),
        (("differences",), [["prism", "prsm"]], "found 'prsm' (did you mean 'prism'?); add it to `presets`"),
        (("differences",), [["prism", "prism"]], "`differences` must be of two presets"),
    ],
)
def test_what_is_wrong_in_the_file_is_found_before_anything_is_loaded(made, monkeypatch, capsys, path, value, words):
    monkeypatch.setattr(PrismModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    file = made / "wrong-compare.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    assert refused(capsys, ["compare", str(file), "--output", str(made / "none")]).count(words) == 1
    assert not (made / "none").exists()


def test_a_file_that_a_task_reads_counts_from_the_comparison_and_by_what_it_holds(made, done, tmp_path, monkeypatch, capsys):
    @dataclass(frozen=True)
    class ByList(Sudoku):
        listed: str | None = field(default=None, metadata={"file": True})

    monkeypatch.setattr(TASKS, "_by_name", dict(TASKS._by_name))
    TASKS.register("by_list")(ByList)
    monkeypatch.setattr(work, "answer_rows", lambda *_, **__: pytest.fail("the folder is another one's"))
    folder = shutil.copytree(made, tmp_path / "made")
    (folder / "list.txt").write_text("one")
    (folder / "compare.yaml").write_text(yaml.safe_dump(changed((*SUDOKU, "task"), {"name": "by_list", "listed": "list.txt"})))
    (task,) = read_comparison(folder / "compare.yaml").tasks
    assert task.task == ByList(str(folder / "list.txt"))
    said = refused(capsys, ["compare", str(folder / "compare.yaml"), "--output", str(folder / "out")])
    assert "has changed since, in tasks.sudoku.task.listed, tasks.sudoku.task.name; choose another folder" in said
    (folder / "list.txt").unlink()
    said = refused(capsys, ["compare", str(folder / "compare.yaml"), "--output", str(folder / "out")])
    assert "`listed` must be a file of what the task reads, but there is none at" in said


def refused(capsys, arguments):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    said = re.search(r"^prism-plugin compare: .*\n\Z", error, re.MULTILINE)  # after transformers' bars of loading
    assert said, error
    return said[0]


def test_what_an_adapter_cannot_run_is_found_before_any_row_is_filled(made, writer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "answer_rows", None)
    file = made / "other-compare.yaml"
    file.write_text(yaml.safe_dump(changed(("presets", "threshold"), [{"threshold": 0.2}, {"block_length": 2}])))
    said = refused(capsys, ["compare", str(file), "--output", str(tmp_path / "out"), "--presets", "threshold"])
    assert "adapter `tiny`" in said
    assert "{'block_length': 2}, 2 steps: `num_steps` must be at least the number of blocks" in said
    file.write_text(yaml.safe_dump(changed((*SUDOKU, "adapters"), {"tiny": "weights", "text": str(writer)})))
    said = refused(capsys, ["compare", str(file), "--output", str(tmp_path / "out")])
    assert "compare.yaml, `tasks`, `sudoku`, adapter `text`: The adapter must be of a Sudoku model" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("limit", "belongs to another comparison, or what it reads has changed since, in limit, tasks.sudoku.test"),
        ("rows", "in tasks.sudoku.test; choose another folder"),
        ("weights", "in tasks.sudoku.adapters.tiny; choose another folder"),
        ("foreign", "holds results.csv but no comparison.json, so another program wrote it"),
        ("inside", "`--output` must be apart from all that is read"),
        ("locked", "is in use by another process"),
        ("log", "runs.jsonl, line 2: a line must be a run as `compare` wrote it"),
        ("word", "runs.jsonl, line 2: a line must be a run as `compare` wrote it"),
        ("row", "runs.jsonl, line 2: a line must be a run as `compare` wrote it"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(made, done, tmp_path, monkeypatch, capsys, change, words):
    monkeypatch.setattr(work, "answer_rows", None)
    folder, output = tmp_path / "made", tmp_path / "made" / "out"
    shutil.copytree(made, folder)
    options = ["--limit", "2"] if change == "limit" else []
    if change == "rows":
        (folder / "test.txt").write_text("\n".join((folder / "test.txt").read_text().splitlines()[1:]))
    elif change == "weights":
        model = PrismModel.from_pretrained(folder / "weights")
        torch.nn.init.zeros_(model.quality_head.layers[-1].weight)
        model.save_pretrained(folder / "weights")
    elif change == "foreign":
        output = tmp_path
        (output / "results.csv").write_text("mine")
    elif change == "inside":
        output = folder / "weights" / "out"
    elif change in ("log", "word", "row"):
        lines = (output / "runs.jsonl").read_bytes().split(b"\n")
        run = json.loads(lines[1])
        if change == "word":
            run["figures"]["success"]["total"][0] = "one"
        else:
            run["figures"]["success"]["total"].pop()
        lines[1] = b"{}" if change == "log" else json.dumps(run).encode()
        (output / "runs.jsonl").write_bytes(b"\n".join(lines))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (output / "runs.jsonl").open("ab") if change == "locked" else (folder / "compare.yaml").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert words in refused(capsys, ["compare", str(folder / "compare.yaml"), "--output", str(output), *options])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
