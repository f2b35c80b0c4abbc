import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from prism_plugin.core.drafting import DraftRule
from prism_plugin.errors import ConfigurationError, SavingError, StoredStateError
from prism_plugin.training import checkpoints, get_objective
from prism_plugin.training import trainer as trainer_module

OBJECTIVE = get_objective("prism", drafts=(DraftRule(num_drafted=2), DraftRule(num_drafted=4, num_looks=2)), t_min=0.2)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def measured(trainer):
    """The log without times, as text, so that NaN equals NaN."""
    logs = [log for log in trainer.state.log_history if "train_loss" not in log]
    kept = [{key: log[key] for key in sorted(log) if "runtime" not in key and "second" not in key} for log in logs]
    return [json.dumps(log) for log in kept]


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.prism_model.named_parameters()}


def new_trainer(lab, directory, **settings):
    model = lab.build_model(dropout=0.3)  # dropout draws from the global generator, which a resumed run must find again
    defaults = {"max_steps": 12, "logging_steps": 3, "save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "cosine"}
    return lab.make_trainer(directory, model=model, objective=OBJECTIVE, **(defaults | settings))


@pytest.mark.parametrize("stop", [5, 10])
def test_resumed_equals_uninterrupted_bit_for_bit(lab, tmp_path, stop):
    settings = {"eval_rows": lab.make_rows(5), "eval_strategy": "steps", "eval_steps": 4}
    whole = new_trainer(lab, tmp_path / "whole", **settings)
    loss = whole.train().training_loss
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{stop}", tmp_path / "again" / f"checkpoint-{stop}")
    again = new_trainer(lab, tmp_path / "again", **settings)
    torch.manual_seed(99)
    assert again.train(resume_from_checkpoint=True).training_loss == pytest.approx(loss, rel=1e-6)
    assert again.state.global_step == 12
    assert measured(again) == measured(whole)
    assert all(torch.equal(weights(again)[name], value) for name, value in weights(whole).items())


def test_a_checkpoint_holds_what_we_own_and_no_pickled_arguments(lab, tmp_path):
    new_trainer(lab, tmp_path, max_steps=5).train()
    assert names(tmp_path) == ["checkpoint-5"]
    assert names(tmp_path / "checkpoint-5") == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "log_state.json", "optimizer.pt",
        "prism_config.json", "quality_head.safetensors", "rng_state.pth", "scheduler.pt", "trainer_state.json",
    ]  # fmt: skip


def test_a_finished_run_is_not_trained_further(lab, tmp_path):
    first = new_trainer(lab, tmp_path, max_steps=5)
    first.train()
    again = new_trainer(lab, tmp_path, max_steps=5)
    assert again.train(resume_from_checkpoint=True).global_step == 5
    assert all(torch.equal(weights(again)[name], value) for name, value in weights(first).items())


def test_a_run_may_be_made_longer_and_saved_more_often(lab, tmp_path):
    settings = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}
    whole = new_trainer(lab, tmp_path / "whole", max_steps=5, save_steps=5, **settings)
    whole.train()
    new_trainer(lab, tmp_path / "again", max_steps=2, save_steps=2, logging_steps=1, **settings).train()
    again = new_trainer(lab, tmp_path / "again", max_steps=5, save_steps=3, **settings)
    again.train(resume_from_checkpoint=True)
    assert names(tmp_path / "again") == ["checkpoint-2", "checkpoint-3", "checkpoint-5"]
    assert [json.loads(log)["step"] for log in measured(again)] == [1, 2, 3, 5]
    assert measured(again)[-1] == measured(whole)[-1]
    assert all(torch.equal(weights(again)[name], value) for name, value in weights(whole).items())
    with pytest.raises(ConfigurationError, match=r"checkpoint-5 is of step 5, but the run is to end after 4; raise `max_steps"):
        new_trainer(lab, tmp_path / "again", max_steps=4, **settings).train(resume_from_checkpoint=True)


def test_resuming_ignores_what_is_not_whole(lab, tmp_path):
    new_trainer(lab, tmp_path, max_steps=5).train()
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "quality_head.safetensors").write_bytes(b"half")
    shutil.copytree(tmp_path / "checkpoint-5", tmp_path / ".building-checkpoint-10")
    assert checkpoints.last_checkpoint(tmp_path).name == "checkpoint-5"
    shutil.rmtree(tmp_path / "checkpoint-5")
    with pytest.raises(ConfigurationError, match=r"Resuming needs a whole checkpoint in .*, found none; start afresh"):
        new_trainer(lab, tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("file", "size"),
    [("trainer_state.json", 20), ("optimizer.pt", 20), ("scheduler.pt", 0), ("rng_state.pth", 20), ("log_state.json", 0)],
)
def test_a_damaged_checkpoint_is_one_sentence(lab, tmp_path, file, size):
    new_trainer(lab, tmp_path, max_steps=5).train()
    path = tmp_path / "checkpoint-5" / file
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        StoredStateError, match=r"checkpoint-5 must hold the state of a run, but .*; remove that folder"
    ) as raised:
        new_trainer(lab, tmp_path).train(resume_from_checkpoint=True)
    assert "\n" not in str(raised.value)


def test_what_a_killed_run_left_is_cleared_away(lab, tmp_path):
    (tmp_path / ".building-checkpoint-3").mkdir()
    new_trainer(lab, tmp_path, max_steps=5).train()
    assert names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")])
def test_a_full_disk_leaves_older_checkpoints_and_no_half_one(lab, tmp_path, monkeypatch, error):
    save, calls = torch.save, []

    def failing_save(state, path, **settings):
        calls.append(path)
        save(state, path, **settings)
        if "checkpoint-10" in str(path):
            raise error

    monkeypatch.setattr(torch, "save", failing_save)
    with pytest.raises(SavingError, match=r"checkpoint-10 could not .*, and older checkpoints are unchanged; make room"):
        new_trainer(lab, tmp_path).train()
    assert calls
    assert names(tmp_path) == ["checkpoint-5"]


def test_a_checkpoint_that_cannot_be_begun_is_one_sentence(lab, tmp_path, monkeypatch):
    def full(run_dir, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "start_building", full)
    with pytest.raises(SavingError, match=r"checkpoint-5 could not be written \(.*No space left on device\), and older"):
        new_trainer(lab, tmp_path).train()
    assert names(tmp_path) == []


def test_the_limit_keeps_the_newest_and_the_best(lab, tmp_path):
    trainer = new_trainer(
        lab, tmp_path, save_steps=2, max_steps=10, save_total_limit=2, eval_rows=lab.make_rows(6), eval_strategy="steps",
        eval_steps=2, metric_for_best_model="quality_loss", greater_is_better=False, load_best_model_at_end=True,
        learning_rate=0.1,
    )  # fmt: skip
    trainer.train()
    evaluated = {log["step"]: log["eval_quality_loss"] for log in trainer.state.log_history if "eval_quality_loss" in log}
    best = min(evaluated, key=evaluated.get)
    assert best != 10, "the case must tell the best from the last"
    assert names(tmp_path) == sorted({f"checkpoint-{best}", "checkpoint-10"})
    assert trainer.evaluate()["eval_quality_loss"] == evaluated[best]
    assert json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())["best_global_step"] == best


def test_a_checkpoint_gets_its_name_last(lab, tmp_path, monkeypatch):
    finish, seen = checkpoints.finish_building, []

    def watching(run_dir, name):
        seen.append((names(run_dir), names(checkpoints.building_folder(run_dir, name))))
        finish(run_dir, name)

    monkeypatch.setattr(trainer_module.checkpoints, "finish_building", watching)
    new_trainer(lab, tmp_path, max_steps=5).train()
    assert seen == [([".building-checkpoint-5", "_run.lock"], names(tmp_path / "checkpoint-5"))]


def test_every_file_is_flushed_before_the_name_is_given(tmp_path, monkeypatch):
    checkpoints.start_building(tmp_path, "checkpoint-1")
    building = checkpoints.building_folder(tmp_path, "checkpoint-1")
    (building / "part").mkdir()
    (building / "part" / "file").write_text("x")
    flushed, fsync = [], os.fsync

    def recording(descriptor):
        flushed.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), building.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    checkpoints.finish_building(tmp_path, "checkpoint-1")
    assert {path for path, before in flushed if before} == {str(building), str(building / "part"), str(building / "part/file")}
    assert flushed[-1] == (str(tmp_path), False)
