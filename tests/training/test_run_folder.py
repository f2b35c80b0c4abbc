"""One run at a time in a folder, over processes and ranks, whatever ends them."""

import multiprocessing
import os
import signal
import socket
from types import SimpleNamespace

import pytest
import torch

from prism_plugin.errors import ConfigurationError, PrismError, SavingError
from prism_plugin.training import run_folder
from prism_plugin.training.run_folder import LOCK_FILE, claimed, where_saved

FORKED = multiprocessing.get_context("fork")
# Newer versions of Python warn of any thread beside the one that forks; these children only lock and wait.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def here(folder, should_save=True):
    return SimpleNamespace(output_dir=str(folder), should_save=should_save)


def hold(folder, told, worker):
    """Hold a folder until killed, with a worker that outlives its parent."""
    with claimed(here(folder)):
        child = os.fork() if worker else None
        if child == 0:
            signal.pause()
        told.send(child)
        signal.pause()


@pytest.fixture
def holder(tmp_path, request):
    """Another process that holds the folder, and one that it forked."""
    told, tell = FORKED.Pipe()
    process = FORKED.Process(target=hold, args=(tmp_path / "run", tell, True))
    process.start()
    child = told.recv()
    yield process
    process.kill()
    process.join()
    os.kill(child, signal.SIGKILL)


def test_a_folder_is_one_runs_own_until_its_process_ends(holder, tmp_path, lab):
    trainer = lab.make_trainer(tmp_path / "run", max_steps=1)
    with pytest.raises(
        ConfigurationError, match=rf"run is in use by process {holder.pid} on .+ since \d{{4}}-.*; wait for its"
    ):
        trainer.train()
    holder.kill()
    holder.join()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    trainer.train()  # the forked worker is still there
    assert list((tmp_path / "run").iterdir()) == []


def rank(number, folder, port, told):
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, number == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=number, world_size=2)
    try:
        with claimed(here(folder, should_save=number == 0)):
            told.send("claimed")
    except PrismError as error:
        told.send(str(error))


def test_every_rank_is_told_and_none_waits(holder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for folder, words in ((tmp_path / "run", "is in use by process"), (tmp_path / "other", "claimed")):
        pipes = [FORKED.Pipe() for _ in range(2)]
        ranks = [FORKED.Process(target=rank, args=(number, folder, port, pipes[number][1])) for number in range(2)]
        for one in ranks:
            one.start()
        assert all(pipe.poll(60) and words in pipe.recv() for pipe, _ in pipes)
        for one in ranks:
            one.join()


def test_a_claim_is_kept_by_its_process_and_leaves_no_empty_folder(tmp_path):
    folder = tmp_path / "new" / "run"
    with claimed(here(folder)):
        with claimed(here(folder)), claimed(here(tmp_path / "new" / "x" / ".." / "run")):
            pass
        assert (folder / LOCK_FILE).exists()
        (folder / "mine").write_text("mine")
    assert [path.name for path in folder.iterdir()] == ["mine"]
    refused = pytest.raises(SavingError, match=r"`output_dir` .*mine must be a folder that can be written, but: .*File exists")
    with refused, claimed(here(folder / "mine")):
        pass


def test_a_file_that_its_owner_takes_away_meanwhile_is_made_anew(tmp_path, monkeypatch):
    flock, path = run_folder.fcntl.flock, tmp_path / LOCK_FILE
    taken = []

    def just_left(descriptor, operation):
        flock(descriptor, operation)
        if not taken:
            taken.append(path.unlink())

    monkeypatch.setattr(run_folder.fcntl, "flock", just_left)
    with claimed(here(tmp_path)):
        assert path.exists()
    assert taken


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def unknown(descriptor, operation):
        raise OSError(run_folder.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", unknown)
    with pytest.warns(UserWarning, match="has no locks .* nothing keeps a second run out of it"), claimed(here(tmp_path)):
        pass


def test_a_refusal_of_one_is_raised_once():
    def refuse():
        raise SavingError("full")

    with pytest.raises(SavingError, match="full"):
        where_saved(here("x"), refuse)
    where_saved(here("x", should_save=False), refuse)


def test_a_trainer_writes_to_nothing_that_its_model_was_read_from(lab, tmp_path):
    model = lab.build_model(tokenizer=lab.tokenizer)
    model.save_pretrained(tmp_path / "adapter")
    model.loaded_from = tmp_path / "adapter"
    before = sorted(tmp_path.rglob("*"))
    for name, relation in (("adapter", "is"), ("adapter/run", "lies in"), (".", "holds")):
        with pytest.raises(ConfigurationError, match=f"`output_dir` must be apart .*{relation} the adapter that was loaded"):
            lab.make_trainer(tmp_path / name, model=model).train()
        if name == "adapter/run":
            (tmp_path / name).rmdir()  # which Trainer makes before anybody is asked
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine")
    model.loaded_from = None
    with pytest.raises(SavingError, match=r"`output_dir` .*run holds README.md, which prism_plugin did not write"):
        lab.make_trainer(tmp_path / "run", model=model).train()


def test_the_best_is_kept_and_found_where_the_run_was_moved_to(lab, tmp_path):
    settings = {
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
        "metric_for_best_model": "quality_loss", "eval_rows": lab.make_rows(4), "learning_rate": 0.5, "max_steps": 2,
        "save_total_limit": 1,
    }  # fmt: skip
    theirs = {"checkpoint-1-best", "checkpoint-1st"}
    for name in theirs:
        (tmp_path / "before" / name).mkdir(parents=True)
    first = lab.make_trainer(tmp_path / "before", **settings)
    first.train()
    assert first.state.best_global_step == 1, "the case must tell the best from the last"
    assert {path.name for path in (tmp_path / "before").iterdir()} == {"checkpoint-1", "checkpoint-2"} | theirs
    best = first.evaluate()["eval_quality_loss"]
    (tmp_path / "before").rename(tmp_path / "after")
    again = lab.make_trainer(tmp_path / "after", **settings)
    again.train(resume_from_checkpoint=True)
    assert again.evaluate()["eval_quality_loss"] == best
    over = lab.make_trainer(tmp_path / "after", max_steps=1, save_strategy="steps", save_steps=1, save_total_limit=1)
    with pytest.warns(UserWarning, match="after holds checkpoint-2 of an older run, and this one starts over, so resuming"):
        over.train()
    assert {path.name for path in (tmp_path / "after").iterdir()} == {"checkpoint-1"} | theirs, "the older run's go first"
