"""An adapter that was moved away from its backbone: the sentence that says so, and what loads it again."""

import shutil

import pytest
import torch
from moved_weights import trained

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.errors import BackboneError, ConfigurationError, SavingError, StoredStateError, UnreachableBackboneError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.config_file import read_config
from prism_plugin.sampling import RemaskingSampler, export_sampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

VERBS = {
    "sample": ["sample", "a[MASK]"],
    "export": ["export", "--output", "out"],
    "eval quality": ["eval", "quality", "--data", "rows.txt", "--on", "states", "--masked", "0.5"],
    "eval sudoku": ["eval", "sudoku", "--data", "rows.txt", "--presets", "random"],
}


@pytest.fixture
def moved(project):
    """The adapter of `project`, copied to a folder of another depth."""
    RemaskingSampler.from_preset("prism", PrismModel.from_pretrained(project / "weights"), num_steps=2).save_pretrained(
        project / "weights"
    )
    return shutil.copytree(project / "weights", project / "far" / "away" / "weights")


def test_what_is_recorded_is_named_as_it_is_written(moved, project):
    with pytest.raises(
        UnreachableBackboneError,
        match=r"weights/prism_config.json says that the backbone is in '../backbone', counted from its own folder, which would "
        r"be .*far/away/backbone, but there is no such folder, so .* moved; say where .* by `backbone`, or "
        r"move them together",
    ) as raised:
        PrismModel.from_pretrained(moved)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["path", "model"])
def test_where_the_backbone_is_can_be_said(moved, project, ids, kind):
    place = project / "backbone"
    given = place if kind == "path" else load_backbone(place)
    before, model = PrismModel.from_pretrained(project / "weights"), PrismModel.from_pretrained(moved, given)
    assert torch.equal(model(ids).quality_logits, before(ids).quality_logits)
    model.save_pretrained(project / "again")
    assert read_config(project / "again")[0].backbone_name == "../backbone"
    assert PrismModel.from_pretrained(project / "again")
    assert PrismModel.from_pretrained(moved, place, dtype="bfloat16").dtype == torch.bfloat16


def test_an_id_on_the_hub_stays_the_name_of_a_copy_on_this_machine(project, tmp_path):
    config = PrismConfig(backbone_name="org/tiny", backbone_revision="abc123")
    trained(attach_quality_head(tiny_backbone(), config, tokenizer=tiny_tokenizer())).save_pretrained(tmp_path / "head")
    with pytest.raises(
        BackboneError, match=r"says that the backbone is 'org/tiny', which could not .* by `backbone`: No config"
    ):
        PrismModel.from_pretrained(tmp_path / "head")
    model = PrismModel.from_pretrained(tmp_path / "head", project / "backbone")
    assert (model.prism_config.backbone_name, model.prism_config.backbone_revision) == ("org/tiny", "abc123")
    with pytest.raises(SavingError, match="must not be saved over its backbone"):
        model.save_pretrained(project / "backbone")
    with pytest.raises(ConfigurationError, match=r"lies in the folder that the backbone was loaded from, .*backbone"):
        export_sampler(RemaskingSampler.from_preset("prism", model, num_steps=2), project / "backbone" / "export")


def test_what_is_given_must_be_there_and_wanted(moved, project, tmp_path):
    with pytest.raises(
        BackboneError, match=r"'.*nowhere' must be a folder with a transformers model, but there is no such folder"
    ):
        PrismModel.from_pretrained(moved, tmp_path / "nowhere")
    model = PrismModel.from_pretrained(project / "weights")
    model.merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    with pytest.raises(
        ConfigurationError, match=r"holds the backbone that its head was trained with; leave `backbone` \(`--back"
    ):
        PrismModel.from_pretrained(tmp_path / "merged", project / "backbone")


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=[pytest.mark.slow] if verb in ("export", "eval quality") else []) for verb in VERBS]
)
def test_every_verb_that_takes_an_adapter_takes_its_backbone(moved, project, monkeypatch, capsys, verb):
    monkeypatch.chdir(project)
    text = "." * 81 if verb == "eval sudoku" else "abc def"
    (project / "rows.txt").write_text(f"{text}\n{text}\n")
    asked = [*VERBS[verb], "--adapter", str(moved), "--device", "cpu"]
    assert cli.main(asked) == 2
    assert "far/away/backbone, but there is no such folder" in capsys.readouterr().err
    code, err = cli.main([*asked, "--backbone", "backbone"]), capsys.readouterr().err
    if verb == "eval sudoku":  # it got as far as to look at the model, which is none of Sudoku
        assert code == 2
        assert "vocabulary" in err or "tokens and mask token" in err
    else:
        assert code == 0


@pytest.mark.parametrize(("commit", "name", "refused"), [
    ("bbb", "org/tiny", True), ("aaa", "org/tiny", False), (None, "org/tiny", False), ("bbb", "org/copy", False),
])  # fmt: skip
def test_a_backbone_of_another_revision_is_refused(commit, name, refused, tmp_path):
    def backbone(commit, name):
        torch.manual_seed(0)
        made = tiny_backbone()
        made.config._commit_hash, made.config.name_or_path = commit, name
        return made

    model = attach_quality_head(backbone("aaa", "org/tiny"), PrismConfig(mask_token_id=31))
    assert model.prism_config.backbone_revision == "aaa"
    model.save_pretrained(tmp_path)
    if not refused:
        PrismModel.from_pretrained(tmp_path, backbone=backbone(commit, name))
        return
    words = "was trained on 'org/tiny' at revision aaa, and this backbone is of revision bbb.*load it with `revision='aaa'`"
    with pytest.raises(StoredStateError, match=words):
        PrismModel.from_pretrained(tmp_path, backbone=backbone(commit, name))
