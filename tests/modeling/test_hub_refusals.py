"""What the Hub, or the way to it, refuses is one sentence, before the work where it can be known."""

import pytest
from peft import LoraConfig

from prism_plugin.cli import main as cli
from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler, push_export_to_hub
from prism_plugin.testing import tiny_backbone
from prism_plugin.training import PrismTrainer, PrismTrainingArguments

OFFLINE = r"Nothing can be uploaded to 'me/head' \(offline mode is on, `HF_HUB_OFFLINE`\); go online, log in with .* upload out"
ROWS = [{"example_id": number, "input_ids": [3, 4, 5, 6], "maskable": [False, True, True, True]} for number in range(4)]


@pytest.fixture
def model():
    return attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31), lora=LoraConfig(r=2))


@pytest.mark.parametrize("what", ["model", "sampler", "export"])
def test_nothing_is_written_for_a_hub_that_cannot_be_reached(model, monkeypatch, what):
    sampler = RemaskingSampler.from_preset("random", model, num_steps=2)
    push = {
        "model": model.push_to_hub,
        "sampler": sampler.push_to_hub,
        "export": lambda name: push_export_to_hub(sampler, name),
    }
    monkeypatch.setattr("prism_plugin.modeling.persistence.save_file", lambda *_: pytest.fail("it was written in vain"))
    with pytest.raises(SavingError, match=OFFLINE) as raised:
        push[what]("me/head")
    assert "\n" not in str(raised.value)


def test_a_name_that_no_repository_has(model):
    with pytest.raises(SavingError, match=r"Nothing can be uploaded to 'me/head/more' \(Repo id must be"):
        model.push_to_hub("me/head/more")


def test_who_is_not_logged_in_is_told_to(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(SavingError, match=r"\(Token is required to call .*no token found.*log in with `hf auth login`"):
        model.push_to_hub("me/head")


def test_an_export_does_not_load_for_it(project, monkeypatch, capsys):
    monkeypatch.setattr(PrismModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    asked = [
        "export",
        "--adapter",
        str(project / "weights"),
        "--push-to-hub",
        "me/head",
        "--preset",
        "prism",
        "--num-steps",
        "2",
    ]
    assert cli.main(asked) == 2
    printed = capsys.readouterr().err
    assert "Nothing can be uploaded to 'me/head'" in printed
    assert printed.count("\n") == 1


def test_a_trainer_says_so_when_it_is_made(model, tmp_path):
    args = PrismTrainingArguments(
        str(tmp_path / "head"), push_to_hub=True, hub_model_id="me/head", report_to="none", use_cpu=True
    )
    with pytest.raises(SavingError, match=OFFLINE):
        PrismTrainer(model, args, train_dataset=ROWS)


def test_an_upload_keeps_the_card_that_was_written_with_the_weights(model, tmp_path):
    trainer = PrismTrainer(model, PrismTrainingArguments(str(tmp_path / "head"), use_cpu=True), train_dataset=ROWS)
    trainer.save_model()
    card = (tmp_path / "head" / "README.md").read_text(encoding="utf-8")
    trainer.create_model_card(model_name="head")  # as Trainer does in front of an upload
    assert (tmp_path / "head" / "README.md").read_text(encoding="utf-8") == card
    with pytest.raises(ConfigurationError, match="written when the model is saved, so tags would be ignored"):
        trainer.create_model_card(model_name="head", tags=["mdm"])
