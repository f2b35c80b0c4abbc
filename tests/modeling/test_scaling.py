"""A temperature and a bias of the head travel in prism_config.json, and change what it says and nothing else."""

import json

import pytest
import torch
from saved_folders import contents, names

from prism_plugin.errors import ConfigurationError, SavingError, StoredStateError
from prism_plugin.modeling import PrismModel
from prism_plugin.modeling.persistence import load_weights, save_scaling


def quality_logits(folder, ids):
    return PrismModel.from_pretrained(folder)(ids).quality_logits


def test_every_reader_of_the_head_sees_the_scaled_number(project, ids):
    folder = project / "weights"
    before, files = quality_logits(folder, ids), contents(folder)
    save_scaling(folder, temperature=2.0, bias=0.5)
    torch.testing.assert_close(quality_logits(folder, ids), before / 2 + 0.5)
    model = PrismModel.from_pretrained(folder)
    torch.testing.assert_close(model.score(ids), (before / 2 + 0.5).sigmoid())
    changed = {name for name, content in contents(folder).items() if content != files[name]}
    assert changed == {"prism_config.json"}
    model.save_pretrained(project / "again")
    assert contents(project / "again")["prism_config.json"] == contents(folder)["prism_config.json"]


def test_what_scales_nothing_is_not_written(project):
    """So a version from before still reads the folder, and one that was scaled it refuses by its unknown key."""
    file = project / "weights" / "prism_config.json"
    before = file.read_bytes()
    assert not {"quality_temperature", "quality_bias"} & set(json.loads(before))
    save_scaling(project / "weights", temperature=1.5, bias=0.0)
    assert json.loads(file.read_bytes()).items() - json.loads(before).items() == {("quality_temperature", 1.5)}
    save_scaling(project / "weights", temperature=1.0, bias=0.0)
    assert file.read_bytes() == before


def test_weights_of_a_run_that_was_scaled_otherwise_are_refused(project):
    model = PrismModel.from_pretrained(project / "weights")
    save_scaling(project / "weights", temperature=2.0, bias=0.0)
    with pytest.raises(StoredStateError, match=r"`quality_temperature` must be 1.0 to fit this model, found 2.0"):
        load_weights(model, project / "weights")


def test_nothing_is_written_by_halves(project, monkeypatch):
    before = contents(project / "weights")
    with pytest.raises(ConfigurationError, match="`quality_temperature` of PrismConfig must be a number above 0, found -1"):
        save_scaling(project / "weights", temperature=-1, bias=0.0)
    with pytest.raises(StoredStateError, match=r"must be a folder with a prism_config.json"):
        save_scaling(project / "nowhere", temperature=2.0, bias=0.0)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(SavingError, match="No space left on device"):
        save_scaling(project / "weights", temperature=2.0, bias=0.0)
    assert contents(project / "weights") == before
    assert names(project) == {"backbone", "weights"}
