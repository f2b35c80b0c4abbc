import datasets
import pytest
import torch
import yaml

from prism_plugin.backbones import load_backbone
from prism_plugin.modeling import attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A saved adapter of a text model, with a sampler."""
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    tiny_backbone().save_pretrained(folder / "backbone")
    tiny_tokenizer().save_pretrained(folder / "backbone")
    model = attach_quality_head(load_backbone(folder / "backbone"), tokenizer=tiny_tokenizer())
    model.save_pretrained(folder / "weights")
    RemaskingSampler.from_preset("confidence", model, num_steps=4).save_pretrained(folder / "weights")
    return folder / "weights"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe with a backbone and data beside it, for a run of four steps."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    torch.manual_seed(0)
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "rows.txt").write_text("\n".join("abcd" * (2 + index % 3) for index in range(12)))
    content = {
        "backbone": {"path": "backbone"},
        "data": {"path": "rows.txt", "eval_share": 0.25},
        "attach": {"lora": {"r": 2}},
        "objective": {"num_drafted": 2},
        "training": {
            "output_dir": "run", "max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 2,
            "use_cpu": True, "disable_tqdm": True,
        },
    }  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file
