"""What goes to the Hub and what is asked of it, told by a stand-in for the calls of huggingface_hub; no network."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from moved_weights import trained
from saved_folders import ADAPTER, BACKBONE, OURS, TOKENIZER, names

from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.config_file import read_config
from prism_plugin.modeling.model_card import CardFacts, read_facts
from prism_plugin.sampling import RemaskingSampler, export_sampler, push_export_to_hub
from prism_plugin.sampling.export import exported_code
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

COMMIT = "https://huggingface.co/me/head/commit/1"


@pytest.fixture
def hub(monkeypatch):
    """Takes what `HfApi` is given, and says that every base model is under the MIT licence."""
    seen = SimpleNamespace(calls=[], files={}, cards={}, asked=[])

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        seen.calls.append(("create", repo_id, private, self.token))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        folder = Path(folder_path)
        seen.calls.append(("upload", repo_id, commit_message))
        seen.files[repo_id] = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        seen.cards[repo_id] = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
        return SimpleNamespace(commit_url=COMMIT)

    def model_info(self, name, *, revision):
        seen.asked.append((name, revision))
        return SimpleNamespace(card_data=SimpleNamespace(license="mit"))

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: {"name": "me"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for function in (create_repo, upload_folder, model_info):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{function.__name__}", function)
    return seen


@pytest.fixture
def from_hub():
    """A model whose backbone is known by an id."""
    config = PrismConfig(backbone_name="org/tiny", backbone_revision="abc123")
    model = trained(attach_quality_head(tiny_backbone(), config, tokenizer=tiny_tokenizer()))
    model.card_facts = CardFacts(figures={"quality AUROC": 0.91234, "steps": 300}, data="rows.jsonl, 32 rows")
    return model


def test_an_adapter_goes_up_whole(hub, lora_model):
    assert lora_model.push_to_hub("me/head", private=True, token="secret") == COMMIT
    assert hub.calls == [("create", "me/head", True, "secret"), ("upload", "me/head", "Upload a PRISM quality head")]
    assert hub.files["me/head"] == OURS | ADAPTER | TOKENIZER
    assert hub.asked == [], "this backbone has no name to ask about"


def test_a_name_without_an_owner_is_uploaded_to_where_it_was_made(hub, lora_model):
    lora_model.push_to_hub("head")
    assert [call[:2] for call in hub.calls] == [("create", "head"), ("upload", "me/head")]


def test_the_card_of_an_adapter_tells_everything(hub, from_hub):
    from_hub.push_to_hub("me/head")
    card = hub.cards["me/head"]
    assert hub.asked == [("org/tiny", "abc123")]
    assert card.data.license == "mit"
    assert card.data.base_model == "org/tiny"
    assert card.data.library_name == "prism-plugin"
    assert card.data.tags == ["prism", "masked-diffusion"]
    assert {one.metric_name: one.metric_value for one in card.data.eval_results} == {"quality AUROC": 0.91234, "steps": 300}
    rows = (
        "| backbone | org/tiny, revision `abc123` |", "| licence of the backbone | mit |", "| model type | bert |",
        "| mask token id | 31 |", "| data | rows.jsonl, 32 rows |", "| quality AUROC | 0.9123 |",
    )  # fmt: skip
    for row in rows:
        assert row in card.text


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({}, "| head | mlp |"),
        ({"head": "multi_tap", "head_taps": (0, -1)}, "| head | multi_tap; taps 0, -1 |"),
        ({"head": "transformer", "head_blocks": 2, "head_history": ("age",)}, "| head | transformer; blocks 2; history age |"),
    ],
)
def test_the_card_says_what_the_head_is(tmp_path, settings, row):
    attach_quality_head(tiny_backbone(), PrismConfig(**settings), tokenizer=tiny_tokenizer()).save_pretrained(tmp_path)
    assert row in (tmp_path / "README.md").read_text()


def test_an_export_goes_up_with_its_code(hub, from_hub):
    sampler = RemaskingSampler.from_preset("prism", from_hub, num_steps=5)
    assert push_export_to_hub(sampler, "me/sampler", private=False, commit_message="Mine") == COMMIT
    assert hub.calls == [("create", "me/sampler", False, None), ("upload", "me/sampler", "Mine")]
    code = {"sampler_config.json", "custom_generate/backbone.json"}
    code |= {f"custom_generate/{name}" for name in exported_code(with_loader=False)}
    assert hub.files["me/sampler"] == OURS | BACKBONE | TOKENIZER | code
    card = hub.cards["me/sampler"]
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["prism", "masked-diffusion", "custom_generate"]
    assert (card.data.base_model, card.data.license) == ("org/tiny", "mit")
    assert "| num_steps | 5 |" in card.text
    assert "| quality AUROC | 0.9123 |" in card.text


def test_an_export_without_the_backbone_names_it(hub, from_hub):
    sampler = RemaskingSampler.from_preset("prism", from_hub, num_steps=5)
    push_export_to_hub(sampler, "me/sampler", merge=False)
    assert not BACKBONE & hub.files["me/sampler"]
    assert 'from_pretrained("org/tiny", revision="abc123").eval()' in hub.cards["me/sampler"].text


def test_an_export_of_an_export_remembers_the_base_model(from_hub, tmp_path):
    for source, target in ((from_hub, "first"), ("first", "second"), ("second", "third")):
        model = PrismModel.from_pretrained(tmp_path / source) if isinstance(source, str) else source
        export_sampler(RemaskingSampler.from_preset("prism", model, num_steps=5), tmp_path / target)
        card = ModelCard.load(tmp_path / target / "README.md", ignore_metadata_errors=False)
        assert card.data.base_model == "org/tiny"
        assert "| backbone | org/tiny, revision `abc123` |" in card.text
        config, _ = read_config(tmp_path / target)
        assert (config.backbone_name, config.base_model, config.backbone_revision) == (".", "org/tiny", "abc123")
    PrismModel.from_pretrained(tmp_path / "third").save_pretrained(tmp_path / "head")
    card = ModelCard.load(tmp_path / "head" / "README.md", ignore_metadata_errors=False)
    assert card.data.base_model == "org/tiny"
    assert "| backbone | the bert model in `../third`, made from org/tiny, revision `abc123` |" in card.text


def test_an_export_that_cannot_be_is_refused_before_the_hub_is_touched(hub, project):
    sampler = RemaskingSampler.from_preset("prism", PrismModel.from_pretrained(project / "weights"), num_steps=5)
    with pytest.raises(ConfigurationError, match="this one is the local folder"):
        push_export_to_hub(sampler, "me/sampler", merge=False)
    assert hub.calls == hub.asked == []


def test_a_hub_that_does_not_answer_leaves_the_licence_open(hub, from_hub, monkeypatch):
    def offline(self, *args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    from_hub.push_to_hub("me/head")
    assert hub.cards["me/head"].data.license is None
    assert "| licence of the backbone | not stated where it was loaded from: see there |" in hub.cards["me/head"].text


def test_the_licence_of_a_folder_is_read_there(project):
    (project / "backbone" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    PrismModel.from_pretrained(project / "weights").save_pretrained(project / "again")
    assert read_facts(project / "again").base_license == "apache-2.0"


def test_figures_go_along_from_folder_to_folder(project):
    model = PrismModel.from_pretrained(project / "weights")
    assert model.card_facts.figures == {"quality AUROC": 0.91234, "steps": 300}
    model.save_pretrained(project / "again")
    assert "| quality AUROC | 0.9123 |" in (project / "again" / "README.md").read_text()


def test_figures_of_other_weights_do_not_go_along(project):
    model = trained(PrismModel.from_pretrained(project / "weights", is_trainable=True))
    model.save_pretrained(project / "again")
    assert "None were measured when this was saved." in (project / "again" / "README.md").read_text()


REWRITTEN = [
    "no front matter",
    "---\n{broken: [\n---\n",
    "---\nprism_figures: many\n---\n",
    "---\nprism_figures: {a: [1]}\n---\n",
]


@pytest.mark.parametrize("card", [*REWRITTEN, None])
def test_a_card_that_someone_rewrote_is_no_error(project, card):
    path = project / "weights" / "README.md"
    path.unlink() if card is None else path.write_text(card)
    assert PrismModel.from_pretrained(project / "weights").card_facts.figures == {}


def test_figures_of_other_libraries_are_numbers(tmp_path, lora_model):
    given = {"numpy": np.float64(0.5), "single": np.float32(0.25), "torch": torch.tensor(3), "nothing": float("nan")}
    lora_model.save_pretrained(tmp_path / "out", figures=given)
    figures = read_facts(tmp_path / "out").figures
    assert {name: type(value) for name, value in figures.items()} == {
        "numpy": float, "single": float, "torch": int, "nothing": float,
    }  # fmt: skip
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {one.metric_name: one.metric_value for one in card.data.eval_results} == {"numpy": 0.5, "single": 0.25, "torch": 3}


@pytest.mark.parametrize("value", [None, [0.5], torch.zeros(2)])
def test_what_is_no_figure_is_refused(tmp_path, lora_model, value):
    with pytest.raises(
        ConfigurationError, match=r"must be a number or a text, but 'AUROC' is of type \w+; give one figure for"
    ):
        lora_model.save_pretrained(tmp_path / "out", figures={"AUROC": value})
    assert not (tmp_path / "out").exists()


def test_what_is_told_stays_in_its_cell(tmp_path, lora_model):
    lora_model.card_facts = CardFacts(figures={"a | b": 1}, data="two\nlines | bars")
    lora_model.save_pretrained(tmp_path / "out")
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert {r"| a \| b | 1 |", r"| data | two lines \| bars |"} <= set(lines)


def test_the_front_matter_is_yaml_whatever_the_names(tmp_path, lora_model):
    lora_model.save_pretrained(tmp_path / "out", figures={"AUROC: within, 'a' draft": 0.5, "note": "yes: no"})
    head = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(head)["prism_figures"] == {"AUROC: within, 'a' draft": 0.5, "note": "yes: no"}
    assert names(tmp_path) == {"out"}


def test_a_sampler_goes_up_with_its_model(hub, from_hub, tmp_path):
    sampler = RemaskingSampler.from_preset("prism", from_hub, num_steps=5)
    assert sampler.push_to_hub("me/sampler", private=True) == COMMIT
    assert hub.calls == [("create", "me/sampler", True, None), ("upload", "me/sampler", "Upload a PRISM sampler")]
    assert hub.files["me/sampler"] == OURS | TOKENIZER | {"sampler_config.json"}
    assert "| schedule | even (num_remask 4, remask_from 0.0, remask_until 1.0) |" in hub.cards["me/sampler"].text
    assert "RemaskingSampler.from_pretrained(" in hub.cards["me/sampler"].text


def test_a_sampler_comes_down_with_its_model(from_hub, tmp_path, monkeypatch):
    from_hub.save_pretrained(tmp_path / "copy")
    sampler = RemaskingSampler.from_preset("prism", from_hub, num_steps=5)
    sampler.save_pretrained(tmp_path / "copy")
    monkeypatch.setattr("prism_plugin.modeling.stored_model.snapshot_download", lambda name, revision: str(tmp_path / "copy"))
    model = PrismModel.from_pretrained("me/sampler", tiny_backbone())
    assert RemaskingSampler.from_pretrained("me/sampler", model).to_dict() == sampler.to_dict()


def test_without_a_tokenizer_the_card_speaks_of_ids(tmp_path):
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31))
    sampler = RemaskingSampler.from_preset("prism", model, num_steps=5)
    export_sampler(sampler, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code.replace("path or id of this folder", str(tmp_path / "out")), {})
