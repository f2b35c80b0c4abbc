import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from prism_plugin.cli import main as cli
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

ROOT = Path(__file__).parents[2]


def write_recipe(directory, **training):
    """A recipe with a backbone and data beside it: two epochs and a bit, checkpoints between logs, dropout on."""
    torch.manual_seed(0)
    tiny_backbone(dropout=0.2).save_pretrained(directory / "backbone")
    tiny_tokenizer().save_pretrained(directory / "backbone")
    words = random.Random(0)
    lines = ["".join(words.choices("abcdefgh ", k=words.randint(6, 20))) for _ in range(19)]
    (directory / "rows.txt").write_text("\n".join(lines))
    recipe = {
        "backbone": {"path": "backbone"},
        "data": {"path": "rows.txt"},
        "attach": {"lora": {"r": 2}, "base_rate": 0.5},
        "objective": {"t_min": 0.2, "drafts": [{"num_drafted": 2}, {"share": [0.2, 0.8], "num_looks": 2}]},
        "training": {
            "output_dir": "run",
            "max_steps": 10,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 3,
            "save_steps": 4,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        | training,
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory / "recipe.yaml"


def run_verb(recipe, *options):
    """`prism-plugin train` in this process."""
    return cli.main(["train", "--recipe", str(recipe), *map(str, options)])


@pytest.fixture
def bench(tmp_path):
    """A recipe, the environment for a process that trains by it, and what tells two runs apart."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "default",
    }
    return SimpleNamespace(write_recipe=write_recipe, run_verb=run_verb, environment=environment, directory=tmp_path)
