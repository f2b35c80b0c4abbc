"""`prism-plugin doctor` as a user calls it: what it finds, in words and as one JSON object, and its exit codes."""

import json
import re

import pytest
import torch
from remote_families import MASK, STANDIN_FAMILIES
from shifted import ROWS, trained_backbone
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPTNeoXConfig,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
    SqueezeBertConfig,
    SqueezeBertForMaskedLM,
)
from transformers.utils import logging as transformers_logging

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

STEP = ["--batch-size", "2", "--length", "16"]
KEYS = [
    "family", "mask_token_id", "mask_token_source", "alignment", "changed_while_attached", "checks", "trainable_parameters",
    "memory_gb",
]  # fmt: skip
LOOKS = ["finite", "bidirectional", "padding", "alignment", "gathered_logits", "training", "rotary_tables"]
SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def _without_the_bar_of_loading():
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture
def bert(tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def ask(capsys, *arguments):
    """Exit code and JSON object."""
    code = cli.main(["doctor", *arguments, "--json", *STEP])
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    return code, json.loads(printed.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_healthy_model(bert, capsys):
    code, found = ask(capsys, bert)
    assert code == 0
    assert list(found) == KEYS
    assert (found["family"], found["mask_token_id"], found["alignment"]) == ("bert", 31, "same_position")
    assert found["mask_token_source"] == "the tokenizer's mask_token_id"
    assert found["changed_while_attached"] == {}
    assert [check["name"] for check in found["checks"]] == ["spec", "attributes", *LOOKS, "head_dtype"]
    assert all(check["ok"] is True for check in found["checks"])
    assert all(list(check) == ["name", "ok", "figure", "detail"] for check in found["checks"])
    assert all(isinstance(check["figure"], float) for check in found["checks"][2:])
    assert found["trainable_parameters"] == 2 * 3 * 8 * (16 + 16) + (2 * 16 + 16 * 16 + 16 + 16 + 1)
    assert found["memory_gb"]["total"] > 0


def test_the_options_of_the_step_are_used(bert, capsys):
    _, default = ask(capsys, bert)
    code, found = ask(
        capsys, bert, "--lora-rank", "2", "--lora-targets", "query", "--dtype", "bfloat16", "--masked-share", "0.5"
    )
    assert code == 0
    assert found["trainable_parameters"] == 2 * 2 * (16 + 16) + 321
    assert found["memory_gb"]["logits"] < default["memory_gb"]["logits"] or default["memory_gb"]["logits"] < 1e-3
    assert "LM head in bfloat16" in found["checks"][-1]["detail"]
    _, frozen = ask(capsys, bert, "--lora-rank", "0", "--four-bit")
    assert frozen["trainable_parameters"] == 321
    assert frozen["memory_gb"]["adapter"] == 0
    assert "LM head in bfloat16" in frozen["checks"][-1]["detail"], "as `quantization: nf4` loads it"


def test_a_row_of_the_step_is_no_longer_than_the_model_takes(bert, capsys):
    assert cli.main(["doctor", bert]) == 0
    printed = capsys.readouterr().out
    assert "memory of a training step: 4 rows of 65 tokens" in printed
    assert "not known" not in printed
    assert cli.main(["doctor", bert, "--length", "66"]) == 2
    said = "`--length` must be at most 65, as many as bert has positions for, got 66."
    assert capsys.readouterr().err == f"prism-plugin doctor: {said}\n"


def test_words_for_people(bert, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["doctor", bert, *STEP]) == 0
    printed = capsys.readouterr().out
    for words in (
        "family       bert", "31, from the tokenizer's mask_token_id", "hidden by a mask of [batch, length]",
        "how far a padded token moves the states of valid ones", "attached and probed in", "1,536 parameters of LoRA on key,",
        "321 of the head", "2 rows of 16 tokens, 100% masked, float32", "activations, with activation checkpointing",
        "largest moment of a step", "attaching    a hook on cls, weights that",
        "not trained frozen, one mode for all modules; `detach` undoes it",
    ):  # fmt: skip
        assert words in printed, words


def test_data_shows_which_position_logits_are_about(tmp_path, capsys):
    trained_backbone(shifted=True).save_pretrained(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    asked = [str(tmp_path), "--mask-token-id", "31"]
    code, found = ask(capsys, *asked, "--data", str(tmp_path / "rows.jsonl"))
    assert [check["name"] for check in found["checks"] if not check["ok"]] == ["alignment_on_data"], "no probe sees it"
    check = found["checks"][-1]
    assert code == 1
    assert check["figure"] < -1
    assert "but as 'next_token' they fill the masks of this data better" in check["detail"]
    code, found = ask(capsys, *asked, "--data", str(tmp_path / "rows.jsonl"), "--logits-alignment", "next_token")
    assert (code, found["alignment"], found["checks"][-1]["ok"]) == (0, "next_token", True)
    assert found["checks"][-1]["detail"].startswith("next_token, seen on this data, difference")
    assert cli.main(["doctor", *asked, "--data", str(tmp_path / "nowhere.jsonl")]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_data_shows_which_blocks_a_model_knows(tmp_path, capsys):
    tiny_backbone("sdar").save_pretrained(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    code, found = ask(capsys, str(tmp_path), "--mask-token-id", "31", "--data", str(tmp_path / "rows.jsonl"))
    (check,) = (one for one in found["checks"] if one["name"] == "block_context_on_data")
    assert (code, check["ok"]) == (0, True)
    assert check["detail"].startswith("not to be seen: blocks before a block tell too little of it"), "it learnt nothing"


def test_a_config_alone_will_do(tmp_path, capsys):
    tiny_backbone("llama").config.save_pretrained(tmp_path)
    arguments = [str(tmp_path), "--mask-token-id", "31"]
    code, found = ask(capsys, *arguments)
    assert code == 0
    assert {check["name"]: check["detail"] for check in found["checks"] if check["ok"] is None} == dict.fromkeys(
        LOOKS, "not run: no weights"
    )
    assert found["memory_gb"]["total"] > 0
    assert found["changed_while_attached"] == {"config.use_cache": [True, False]}
    assert cli.main(["doctor", *arguments, *STEP]) == 0
    printed = capsys.readouterr().out
    assert "attached and probed" not in printed
    assert "attaching    config.use_cache True -> False, a hook on lm_head," in printed


def test_weights_may_be_left_where_they_are(bert, capsys):
    (_, with_weights), (code, without) = ask(capsys, bert), ask(capsys, bert, "--without-weights")
    assert code == 0
    assert without["memory_gb"] == with_weights["memory_gb"]
    assert without["checks"][2]["ok"] is None


def test_remote_code_without_weights(tmp_path, capsys):
    STANDIN_FAMILIES["llada"].save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    code, found = ask(capsys, str(tmp_path), "--trust-remote-code")
    assert code == 0
    assert (found["family"], found["mask_token_id"]) == ("llada", MASK)
    assert found["memory_gb"]["total_checkpointed"] > 0
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "brings its own Python code" in capsys.readouterr().err


def test_a_causal_model_fails(tmp_path, capsys):
    config = GPTNeoXConfig(**SIZES, bos_token_id=0, eos_token_id=0, architectures=["GPTNeoXForCausalLM"])
    config.save_pretrained(tmp_path)
    code, found = ask(capsys, str(tmp_path), "--mask-token-id", "31")
    assert code == 1
    assert (found["mask_token_id"], found["mask_token_source"]) == (31, "--mask-token-id")
    assert "GPTNeoXForCausalLM attends to the left only" in found["checks"][-1]["detail"]
    assert (found["checks"][-1]["ok"], found["trainable_parameters"], found["memory_gb"]) == (False, None, {})
    assert cli.main(["doctor", str(tmp_path), "--mask-token-id", "31"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_model_that_fails_a_probe(tmp_path, capsys):
    backbone = tiny_backbone()
    backbone.bert.encoder.layer[0].output.dense.weight.data.fill_(float("inf"))
    backbone.save_pretrained(tmp_path)
    code, found = ask(capsys, str(tmp_path), "--mask-token-id", "31")
    assert code == 1
    check = next(check for check in found["checks"] if check["name"] == "finite")
    assert check["ok"] is False
    assert re.match("BertForMaskedLM gives final hidden states that are not finite .* load them again", check["detail"])


def test_a_model_that_cannot_be_called(tmp_path, capsys):
    STANDIN_FAMILIES["llada"].save(tmp_path)
    path = tmp_path / "modeling_llada.py"
    code = path.read_text(encoding="utf-8").replace(
        "self.config.use_cache if use_cache is None else use_cache", "self.config.gone"
    )
    path.write_text(code, encoding="utf-8")
    code, found = ask(capsys, str(tmp_path), "--trust-remote-code")
    assert code == 1
    assert [(check["name"], check["ok"]) for check in found["checks"]] == [
        ("spec", True),
        ("own_code", True),
        ("attributes", True),
        ("forward", False),
    ]
    assert "modeling_llada.py" in found["checks"][1]["detail"]
    assert "failed (AttributeError" in found["checks"][-1]["detail"]


def test_an_unknown_family_is_described(tmp_path, capsys):
    MegatronBertForMaskedLM(MegatronBertConfig(**SIZES)).save_pretrained(tmp_path)
    code, found = ask(capsys, str(tmp_path), "--mask-token-id", "31")
    assert code == 0
    assert found["checks"][0]["detail"].startswith(
        "not registered; from looking at the model: BackboneSpec(model_type='megatron-bert'"
    )


def test_a_family_without_layers_for_lora(tmp_path, capsys):
    SqueezeBertForMaskedLM(SqueezeBertConfig(**SIZES, embedding_size=16)).save_pretrained(tmp_path)
    code, found = ask(capsys, str(tmp_path), "--mask-token-id", "31")
    assert (code, found["trainable_parameters"]) == (0, 321)
    assert "the head alone, or name `--lora-targets`" in next(one["detail"] for one in found["checks"] if one["name"] == "lora")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lora-rank", "-1"], "`--lora-rank` must be at least 0, got -1"),
        (["--lora-rank", "0", "--lora-targets", "query"], "`--lora-rank 0` asks for none; leave one out"),
        (["--batch-size", "0"], "`--batch-size` must be an integer of at least 1, found 0"),
        (["--mask-token-id", "32"], "must be an integer in [0, 32)"),
        (["--lora-targets", "qqq"], "PEFT cannot put `lora` on BertForMaskedLM"),
    ],
)
def test_mistakes_are_one_sentence(bert, capsys, arguments, words):
    assert cli.main(["doctor", bert, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("prism-plugin doctor: ")
    assert words in printed.err


def test_no_model_and_no_mask_token(tmp_path, capsys):
    assert cli.main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path)
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "pass `--mask-token-id`." in capsys.readouterr().err
    assert load_backbone(tmp_path).dtype == torch.float32
