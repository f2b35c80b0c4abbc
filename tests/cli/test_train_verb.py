import errno
import json
import os
import shutil

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from train_verb import run

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import train
from prism_plugin.modeling import PrismModel, attach_quality_head
from prism_plugin.training import get_objective


def test_training_leaves_a_head_that_loads_and_one_json_object(recipe, tmp_path, capsys):
    assert run(recipe, "--json", "--max_steps", "2") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2
    assert {"loss", "quality_loss", "diffusion_loss", "base_rate", "eval_quality_loss", "eval_quality_ece"} <= set(printed)
    model = PrismModel.from_pretrained(tmp_path / "run")
    assert model.prism_config.objective["drafts"][0]["num_drafted"] == 2
    assert model.card_facts.figures["eval_quality_ece"] == printed["eval_quality_ece"]
    assert model.card_facts.data == "rows.txt, 9 rows"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| data | rows.txt, 9 rows |" in card
    assert str(tmp_path) not in card


def test_recorded_drafts_are_trained_on_and_gone_on_with(recipe, tmp_path, capsys):
    rows = {"input_ids": [[3, 4, 5, 6]] * 8, "maskable": [[False, True, True, True]] * 8, "canvas": [[3, 31, 7, 6]] * 8}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "drafts.parquet")
    content = yaml.safe_load(recipe.read_text())
    content["data"] |= {"path": "drafts.parquet", "columns": {"draft_ids": "canvas"}}
    recipe.write_text(yaml.safe_dump(content))
    for options in ([], ["--dry-run"]):
        assert run(recipe, *options) == 2
        assert (
            "drafts.parquet has recorded drafts, the column `draft_ids`, which the objective `prism`" in capsys.readouterr().err
        )
    content["objective"] = {"name": "prism_recorded", "diffusion_weight": 0.25}
    recipe.write_text(yaml.safe_dump(content))
    assert run(recipe, "--dry-run", "--json") == 0
    assert run(recipe) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert run(recipe, "--json") == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["steps"] == 4
    assert printed["eval_diffusion_loss"] > 0
    objective = PrismModel.from_pretrained(tmp_path / "run").prism_config.objective
    assert get_objective(**objective) == get_objective("prism_recorded", diffusion_weight=0.25)
    for options in ([], ["--dry-run"]):
        assert run(recipe, "--data.path", str(tmp_path / "rows.txt"), "--data.columns", "{}", *options) == 2
        assert "The objective `prism_recorded` learns from recorded drafts, the column `draft_ids`" in capsys.readouterr().err


def test_a_recipe_may_start_from_an_adapter(recipe, tmp_path, capsys):
    model = attach_quality_head(load_backbone(tmp_path / "backbone"), {"mask_token_id": 31}, lora={"r": 2})
    first = {name: torch.randn_like(one) for name, one in model.quality_head.state_dict().items()}
    model.quality_head.load_state_dict(first)
    model.save_pretrained(tmp_path / "first")
    content = yaml.safe_load(recipe.read_text())
    content["attach"], content["data"] = {"adapter": "first"}, {"path": "rows.txt"}
    content["training"] |= {"output_dir": "on", "max_steps": 1, "learning_rate": 1e-9}
    recipe.write_text(yaml.safe_dump(content))
    assert run(recipe, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["trainable_parameters"]["adapter"] > 0
    assert run(recipe) == 0
    second = load_file(tmp_path / "on" / "quality_head.safetensors")
    assert all(torch.allclose(second[name], value, atol=1e-6) for name, value in first.items())
    for options, words in (
        (["--attach.head", "mlp"], "`attach.adapter` brings its own head and LoRA, so attach.head would be ignored"),
        (["--output_dir", tmp_path / "first" / "on"], "lies in the adapter to start from"),
        (["--adapter", tmp_path / "backbone"], "prism_config.json is missing"),
    ):
        assert run(recipe, *options) == 2
        assert words in capsys.readouterr().err


def test_a_run_goes_on_only_with_its_own_recipe_and_data(recipe, tmp_path, capsys):
    assert run(recipe) == 0
    assert run(recipe, "--max_steps", "5", "--save_steps", "1", "--logging_steps", "500", "--json") == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["steps"], "loss" in printed) == (5, True)
    assert run(recipe, "--max_steps", "3") == 2
    assert "checkpoint-5 is of step 5, but the run is to end after 3; raise `max_steps`" in capsys.readouterr().err
    assert run(recipe, "--learning_rate", "1e-3") == 2
    assert "run belongs to another run, which differs in training.learning_rate; choose another" in capsys.readouterr().err
    (tmp_path / "rows.txt").write_text("abc\n" * 12)
    assert run(recipe) == 2
    assert "differs in data, eval_data" in capsys.readouterr().err
    assert run(recipe, "--fresh", "--save_steps", "3") == 0
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    (tmp_path / "run" / "run.json").unlink()
    assert run(recipe) == 2
    assert "holds a trained head but no run.json that says which recipe it is from" in capsys.readouterr().err
    (tmp_path / "run" / "run.json").write_text("{")
    assert run(recipe) == 2
    assert "run.json must say which recipe made this folder, but cannot be read (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num_drafted", "0"], "`num_drafted` of DraftRule must be an integer of at least 1"),
        (["--data.path", "none.txt"], "none.txt"),
        (["--backbone.path", "./nowhere"], "must be a folder with a transformers model"),
        (["--backbone.path", "nowhere"], "There is no folder 'nowhere' where paths count from (the recipe's folder, or on the"),
        (["--backbone.dtype", "float99"], "`backbone.dtype` must be a torch dtype such as bfloat16, found 'float99'"),
        (["--mask_token_id", "99"], "99"),
        (["--optim", "best"], "training: best is not a valid OptimizerNames"),
        (["--eval_strategy", "steps", "--eval_share", "null"], "`eval_strategy: steps` needs `data.eval_share`"),
        (["--eval_share", "0.99"], "`eval_share` 0.99 of 12 rows leaves none to train on"),
        (["--per_device_train_batch_size", "64"], "A step needs 64 rows"),
        (["--seed", "-1"], "`seed` must be at least 0 and below 2**32, got -1"),
        (["--report_to", "pigeon"], "training: pigeon is not supported, only"),
        (["--report_to", "wandb"], "training: WandbCallback requires wandb to be installed"),
        (["--push_to_hub"], "Nothing can be uploaded to 'run' (offline mode is on, `HF_HUB_OFFLINE`); go online"),
        (["--lora", "null"], "The backbone is frozen, so the diffusion term cannot teach it anything"),
        (
            ["--quantization", "nf4", "--lora", "null", "--diffusion_weight", "0"],
            "leaves 4-bit weights, which cannot be trained",
        ),
        (["--fsdp", "full_shard"], "`training.fsdp` shares the weights out over processes, and this is the only one; start"),
        (["--quantization", "int3"], "must be one of nf4 or None, got 'int3'"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(recipe, tmp_path, capsys, options, words):
    assert run(recipe, *options) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prism-plugin train: ")]
    assert len(message) == 1
    assert words in message[0]
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_a_bad_row_keeps_its_number_when_rows_are_held_out(recipe, tmp_path, capsys):
    lines = [json.dumps({"text": "" if index == 5 else "abcd"}) for index in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert run(recipe, "--data.path", str(tmp_path / "rows.jsonl")) == 2
    assert "rows.jsonl, row 6: the row is empty; remove it." in capsys.readouterr().err


def test_an_unknown_option_is_refused_and_names_are_not_guessed(recipe, capsys):
    for option in ("--max_step", "--no_such_setting"):
        with pytest.raises(SystemExit) as caught:
            run(recipe, option, "3")
        assert caught.value.code == 2
        assert f"unrecognized arguments: {option}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--per_device_train_batch_size", "64"], "A step needs 64 rows"),
        (["--adam_beta1", "2"], "`optim: adamw_torch_fused` with `lr_scheduler_type: linear` cannot be used as it is set: Inv"),
        (["--lr_scheduler_kwargs", "{cycles: 2}"], "with `lr_scheduler_type: linear` cannot be used as it is set: get_linear"),
    ],
)
def test_a_fresh_run_that_cannot_be_deletes_nothing(recipe, tmp_path, capsys, options, words):
    assert run(recipe, "--max_steps", "2") == 0
    before = (tmp_path / "run" / "run.json").read_text()
    assert run(recipe, "--fresh", *options) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_a_full_disk_at_the_start_deletes_nothing(recipe, tmp_path, capsys, monkeypatch):
    assert run(recipe, "--max_steps", "2") == 0
    before = {path.name for path in (tmp_path / "run").iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(recipe, "--fresh") == 2
    assert (
        "could not be written ([Errno 28] No space left on device), and what stood there is unchan" in capsys.readouterr().err
    )
    assert {path.name for path in (tmp_path / "run").iterdir()} == before


def test_an_output_dir_that_is_a_file_is_one_sentence(recipe, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert run(recipe) == 2
    assert "run must be a folder that can be written, but: [Errno 17] File exists" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "somewhere: the disk is full; make room"),
        (errno.EACCES, "somewhere: access is denied; change the permissions"),
        (errno.EROFS, "somewhere: the file system is read-only; choose another folder"),
    ],
)
def test_what_the_disk_refuses_anywhere_is_one_sentence(recipe, capsys, monkeypatch, number, words):
    def refused(*args, **settings):
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr(train, "raw_rows", refused)
    assert run(recipe) == 2
    assert f"prism-plugin train: {words}" in capsys.readouterr().err
