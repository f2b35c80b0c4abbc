import json

import datasets
import pytest
import yaml
from remote_families import STANDIN_FAMILIES
from train_verb import run as train
from training_methods import METHODS

from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.training import register_objective
from prism_plugin.training.presets import PRESETS

# Sizes of LLaDA-8B, for the stand-in of its code.
LLADA_8B = {
    "d_model": 4096, "n_heads": 32, "n_layers": 32, "mlp_hidden_size": 12288, "vocab_size": 126464,
    "max_sequence_length": 4096, "mask_token_id": 126336, "dtype": "bfloat16",
}  # fmt: skip


def run(recipe, *options):
    return train(recipe, "--dry-run", *options)


def write(folder, backbone="backbone", **sections):
    content = {
        "backbone": {"path": backbone},
        "data": {"path": "rows.txt", "eval_share": 0.25},
        "attach": {"lora": {"r": 2}},
        "objective": {"num_drafted": 2},
        "training": {
            "output_dir": "run", "num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
            "disable_tqdm": True,
        },
    }  # fmt: skip
    for name, values in sections.items():
        content[name] = {**content[name], **values}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A backbone's config and tokenizer, without weights, and 20 rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tiny_backbone("llama", hidden_size=256).config.save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "rows.txt").write_text("\n".join("abcd" * (2 + index % 3) for index in range(20)))
    return tmp_path


def test_it_counts_what_training_would_be_and_writes_nothing(folder, capsys):
    recipe = write(folder, training={"bf16": True, "activation_checkpointing": True})
    before = {path for path in folder.rglob("*") if "cache" not in path.parts}
    assert run(recipe, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {path for path in folder.rglob("*") if "cache" not in path.parts} == before
    assert (found["family"], found["mask_token_id"]) == ("llama", 31)
    # Rank 2 on q, k, v, o of 256 x 256 in two layers; LayerNorm, 256 x 256 and 256 x 1 with biases.
    assert found["trainable_parameters"] == {"adapter": 2 * 4 * 2 * 512, "head": 512 + 256 * 256 + 256 + 256 + 1}
    assert found["steps"] == {"processes": 1, "rows_per_step": 4, "per_epoch": 3, "total": 9}
    data = found["data"]
    assert (data["rows"], data["eval_rows"], data["columns"], data["longest_row"]) == (15, 5, ["text"], 16)
    assert data["maskable_share"] == 1
    memory = found["memory_gb"]
    assert memory["needed"] == memory["total_checkpointed"] > memory["weights"] > 0
    assert run(recipe) == 0
    printed = capsys.readouterr().out
    assert "trainable_parameters.head" in printed
    assert "66,561" in printed
    assert "memory_gb.needed" in printed


@pytest.mark.parametrize("name", METHODS)
def test_an_objective_of_your_own_is_counted_by_its_terms(folder, capsys, monkeypatch, name):
    monkeypatch.setattr("prism_plugin.training.presets.PRESETS", dict(PRESETS))
    register_objective(f"my_{name}", METHODS[name])
    recipe = yaml.safe_load(write(folder).read_text()) | {"objective": {"name": f"my_{name}"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run(folder / "recipe.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["trainable_parameters"]["head"] > 0) == METHODS[name].reads_quality
    assert found["memory_gb"]["total"] > found["memory_gb"]["weights"]


def test_llada_8b_has_201_million_lora_parameters_and_a_head_of_16_8(folder, capsys):
    STANDIN_FAMILIES["llada"].save(folder / "llada")
    config = json.loads((folder / "llada" / "config.json").read_text())
    (folder / "llada" / "config.json").write_text(json.dumps(config | LLADA_8B))
    (folder / "llada" / "model.safetensors").unlink()
    lora = {"r": 256, "alpha": 256, "targets": ["q_proj", "k_proj", "v_proj"]}
    recipe = write(folder, "llada", attach={"lora": lora}, data={"path": "someone/rows", "split": "train"})
    assert run(recipe, "--json", "--trust_remote_code") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trainable_parameters"] == {"adapter": 201_326_592, "head": 16_793_601}
    assert found["parameters"] == pytest.approx(8.02e9 + 201_326_592 + 16_793_601, rel=0.001)
    assert found["memory_gb"] is None, "without data and `max_length` nobody knows how long a row is"
    assert found["steps"]["per_epoch"] is None
    assert any(one.startswith("data and steps: someone/rows is neither a local file nor") for one in found["not_checked"])


def test_4_bits_are_counted_without_weights(folder, capsys):
    assert run(write(folder, data={"max_length": 16}), "--json") == 0
    plain = json.loads(capsys.readouterr().out)["memory_gb"]
    assert run(write(folder, data={"max_length": 16}), "--json", "--quantization", "nf4") == 0
    assert json.loads(capsys.readouterr().out)["memory_gb"]["weights"] < plain["weights"] / 2


def test_recorded_drafts_are_counted_as_they_are_trained_on(folder, capsys):
    canvas = {"input_ids": [3, 4, 5, 6] * 4, "maskable": [True] * 16, "draft_ids": [3, 31, 4, 6] * 4}
    (folder / "canvases.jsonl").write_text("".join(json.dumps(canvas) + "\n" for _ in range(20)))
    memory = {}
    for name, data in (("prism", "rows.txt"), ("prism_recorded", "canvases.jsonl")):
        for weight in (0.0, 0.5):
            content = yaml.safe_load(write(folder, data={"path": data, "max_length": 4096}).read_text())
            content["objective"] = {"name": name, "diffusion_weight": weight}
            (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
            assert run(folder / "recipe.yaml", "--json") == 0
            memory[name, weight] = json.loads(capsys.readouterr().out)["memory_gb"]
    assert memory["prism_recorded", 0.0]["logits"] == 0, "there is no first look"
    assert memory["prism", 0.0]["logits"] > 0
    assert memory["prism", 0.5]["logits"] > memory["prism_recorded", 0.5]["logits"] > 0


def test_a_config_alone_will_do(folder, capsys):
    for path in (folder / "backbone").glob("token*"):
        path.unlink()
    assert run(write(folder, attach={"mask_token_id": 31}), "--json") == 0
    told = json.loads(capsys.readouterr().out)["not_checked"]
    assert any(one.endswith("holds no tokenizer") for one in told)
    assert any("the length of a row is unknown; set `data.max_length`" in one for one in told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fresh"], "--dry-run changes nothing, so --fresh would be ignored"),
        (["--num_drafted", "0"], "`num_drafted` of DraftRule must be an integer of at least 1"),
        (["--lora", "null"], "The backbone is frozen, so the diffusion term cannot teach it anything"),
        (["--targets", "[nothing]"], "PEFT cannot put `lora` on LlamaForCausalLM"),
        (["--data.columns", "{text: body}"], "body"),
        (["--data.path", "none.txt"], "none.txt"),
        (["--per_device_train_batch_size", "64"], "A step needs 128 rows"),
        (["--lr_scheduler_kwargs", "{cycles: 2}"], "with `lr_scheduler_type: linear` cannot be used as it is set: get_linear"),
        (["--adam_beta1", "2"], "cannot be used as it is set: Invalid beta"),
        (["--eval_strategy", "steps", "--eval_share", "null"], "`eval_strategy: steps` needs `data.eval_share`"),
        (["--quantization", "int3"], "must be one of nf4 or None, got 'int3'"),
        (["--backbone.path", "someone/model"], "give a folder with a config.json, or a Hub id that can be reached"),
    ],
)
def test_what_training_would_refuse_is_one_sentence(folder, capsys, options, words):
    assert run(write(folder), *options) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prism-plugin train: ")]
    assert len(message) == 1
    assert words in message[0]


def test_what_fsdp_would_spoil_is_refused_before_anything_is_loaded(folder, capsys, monkeypatch):
    for name, value in (("USE_FSDP", "true"), ("MIXED_PRECISION", "no")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    assert run(write(folder)) == 0
    assert run(write(folder), "--bf16") == 2
    assert "would cast the float32 head and LoRA to it; set `bf16: false`" in capsys.readouterr().err
    assert run(write(folder), "--quantization", "nf4") == 2
    assert "FSDP leaves 4-bit weights whole on every process" in capsys.readouterr().err


def test_rows_that_the_model_cannot_read_are_one_sentence(folder, capsys):
    tiny_backbone("bert", max_position_embeddings=11).config.save_pretrained(folder / "bert")
    tiny_tokenizer().save_pretrained(folder / "bert")
    assert run(write(folder, "bert")) == 2
    assert "rows.txt must have at most 12 tokens" in capsys.readouterr().err
    assert run(write(folder, "bert"), "--max_length", "12") == 0
    STANDIN_FAMILIES["mdlm"].save(folder / "mdlm")
    tiny_tokenizer().save_pretrained(folder / "mdlm")
    recipe = write(folder, "mdlm")
    assert run(recipe, "--trust_remote_code") == 2
    assert "takes no attention mask, so all rows of a batch must be equally long" in capsys.readouterr().err
    assert run(recipe, "--trust_remote_code", "--pads", "supervised", "--max_length", "16") == 0
