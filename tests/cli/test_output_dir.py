"""What `train` may write to: a folder of its own, one run at a time; and what --fresh takes away, killed or not."""

import json
import os
import shutil
from dataclasses import asdict, replace

import pytest
from train_verb import run

from prism_plugin.cli import run_record, train
from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.training import run_folder


def everything(folder):
    """Every file and link with what it holds."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    ("output_dir", "words"),
    [
        ("backbone", "run_that_reads/backbone is the folder of the backbone"),
        ("backbone/../link", "run_that_reads/backbone/../link is the folder of the backbone"),
        ("link/run", "link/run lies in the folder of the backbone"),
        (".", "holds the recipe"),
        ("data", "data holds the data"),
    ],
)
def test_nothing_that_a_run_reads_is_written_to(recipe, tmp_path, capsys, output_dir, words):
    place = tmp_path / "run_that_reads"
    (place / "data").mkdir(parents=True)
    (tmp_path / "backbone").rename(place / "backbone")
    (place / "link").symlink_to("backbone")
    (place / "backbone" / "README.md").write_text("mine")
    (tmp_path / "rows.txt").rename(place / "data" / "rows.txt")
    (place / "rows.txt").symlink_to("data/rows.txt")
    recipe = recipe.rename(place / "recipe.yaml")
    before = everything(place)
    for option in ("--fresh", "--dry-run"):
        assert run(recipe, option, "--output_dir", place / output_dir) == 2
        told = capsys.readouterr().err
        assert "recipe.yaml: `output_dir` must be apart from all that is read, but " in told
        assert words in told
        assert everything(place) == before


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "run.json", "checkpoint-4"])
def test_files_of_others_are_not_written_over(recipe, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(train, "load_backbone", lambda *_, **__: pytest.fail("it loaded"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}")
    for options in ([], ["--fresh"], ["--dry-run"]):
        assert run(recipe, *options) == 2
        assert f"run holds {name}, which " in capsys.readouterr().err
        assert everything(tmp_path / "run") == {name: b"{}"}


def test_fresh_takes_away_what_a_run_wrote_and_nothing_else(recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert run(recipe, "--max_steps", "2", "--eval_share", "null") == 0
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-2-best")
    for name in ("checkpoint-mine", ".building-mine"):
        (folder / name).mkdir()
        (folder / name / "notes.txt").write_text("mine")
    (folder / "checkpoint-list").write_text("mine")
    (folder / "checkpoint-last").symlink_to("checkpoint-2-best")
    theirs = {name: kept for name, kept in everything(folder).items() if name.split("-", 1)[-1].startswith(("2-b", "m", "l"))}
    assert len(theirs) > 10
    step, seen = train.PrismTrainer.training_step, []

    def looking(*args, **settings):
        seen.append([*folder.glob("*.safetensors"), *folder.glob("checkpoint-2")])
        return step(*args, **settings)

    monkeypatch.setattr(train.PrismTrainer, "training_step", looking)
    assert run(recipe, "--fresh", "--eval_share", "null", "--save_steps", "1", "--save_total_limit", "1") == 0
    assert seen[0] == [], "a run that is killed now must not leave old weights beside a new run.json"
    after = everything(folder)
    assert {name: after[name] for name in theirs} == theirs
    assert sorted(path.name for path in folder.glob("checkpoint-[0-9]")) == ["checkpoint-4"]
    (folder / "checkpoint-9").symlink_to("checkpoint-2-best")
    with pytest.raises(SavingError, match="run holds checkpoint-9, which no run of prism_plugin wrote there"):
        run_record.require_usable(folder, fresh=True)  # which the run after it would go on from
    assert not (folder / run_folder.LOCK_FILE).exists()


def test_a_mistake_that_shows_late_leaves_nothing(recipe, tmp_path, capsys):
    assert run(recipe, "--output_dir", tmp_path / "new" / "run", "--mask_token_id", "99") == 2
    assert "99" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_second_run_in_the_same_folder_is_told_of_the_first(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "_train", lambda *_, **__: ({"steps": 1}, True))
    (tmp_path / "run").mkdir()
    holder = os.open(tmp_path / "run" / run_folder.LOCK_FILE, os.O_RDWR | os.O_CREAT)
    run_folder.fcntl.flock(holder, run_folder.fcntl.LOCK_EX)
    os.write(holder, json.dumps({"pid": 4711, "host": "elsewhere", "since": "2026-01-02 03:04:05 UTC"}).encode())
    assert run(recipe, "--fresh") == 2
    assert "run is in use by process 4711 on elsewhere since 2026-01-02 03:04:05 UTC; wait for its end, or choose" in (
        capsys.readouterr().err
    )
    os.close(holder)  # as when it is killed
    assert run(recipe, "--fresh") == 0
    assert not (tmp_path / "run" / run_folder.LOCK_FILE).exists()


class Killed(BaseException):
    pass


def written(record):
    return {"format_version": 1, **asdict(record)}


@pytest.fixture
def old_run(tmp_path):
    """What a finished run leaves, in names, with a file of somebody beside it."""
    folder = tmp_path / "run"
    for name in OLD_RUN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    (folder / "run.json").write_text(json.dumps(written(RECORD)))
    return folder


RECORD = run_record.RunRecord(recipe={"a": {"b": 1}}, num_processes=1, data="x", eval_data=None)
OLD_RUN = [
    "prism_config.json", "quality_head.safetensors", "README.md",
    "notes.txt", "checkpoint-2-best/prism_config.json", "checkpoint-10/prism_config.json", "checkpoint-10/trainer_state.json",
]  # fmt: skip
OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open")


@pytest.mark.parametrize("stood", [{"prism_config.json", "run.json"}, {"run.json"}])
def test_fresh_killed_anywhere_leaves_the_old_run_or_none(old_run, monkeypatch, stood):
    for name in {"prism_config.json", "run.json"} - stood:
        (old_run / name).unlink()
    template = old_run.rename(old_run.with_name("template"))
    old, new = everything(template), replace(RECORD, data="y")
    theirs = {"notes.txt", "checkpoint-2-best/prism_config.json"}
    ends = []
    for number in range(1000):
        shutil.rmtree(old_run, ignore_errors=True)
        shutil.copytree(template, old_run)
        if begin_killed_at(number, old_run, new, monkeypatch):
            break
        now = everything(old_run)
        assert theirs <= now.keys()
        if run_record.being_cleared(old_run) or not stood & now.keys():  # none: every verb sees it so, and the next run ends it
            ends.append("none")
            assert "prism_config.json" not in now, "what is left must not load"
            run_record.require_usable(old_run, fresh=False)
            run_record.refuse_other_run(old_run, new)
            run_record.begin(old_run, new, fresh=False)
            assert set(everything(old_run)) == theirs | {"run.json"}
        elif {name: now.get(name) for name in old} == old:
            ends.append("old")
            if "run.json" in stood:
                run_record.refuse_other_run(old_run, RECORD)
                with pytest.raises(ConfigurationError, match="belongs to another run, which differs in data"):
                    run_record.refuse_other_run(old_run, new)
        else:
            ends.append("new")
            assert set(now) <= theirs | {"run.json", run_record.CLEARING_FILE}
            assert json.loads(now["run.json"]) == written(new)
    assert number > 15
    assert ends == sorted(ends, key=["old", "none", "new"].index)
    assert {"old", "none"} <= set(ends)
    assert set(everything(old_run)) == theirs | {"run.json"}


def begin_killed_at(number, folder, record, monkeypatch):
    """Let --fresh come to its operation `number` on the disk, and no further. Returns whether it ended before."""
    done = []
    with monkeypatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, deadly(getattr(os, name), done, number))
        try:
            run_record.begin(folder, record, fresh=True)
        except Killed:
            return False
    return True


def deadly(operation, done, number):
    def counted(*args, **settings):
        if len(done) >= number:
            raise Killed
        done.append(args)
        return operation(*args, **settings)

    return counted
