"""Folders with a model and its own code, as repositories hold them: built on the spot, loaded by the real way."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from prism_plugin.backbones.compat import patch_model_class, transformers_4_names

STANDINS = Path(__file__).parent / "standins"
MASK = 31


@dataclass(frozen=True)
class RemoteFamily:
    """Code of a family, and the config of a tiny model of it.

    Attributes:
        files: Python files to copy, relative to `root`.
        auto_map: As in config.json.
        config: The rest of config.json.
        root: Where the files are.
    """

    files: tuple[str, ...]
    auto_map: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    root: Path = STANDINS

    def save(self, folder: Path, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
        """Write a folder with code, config and random weights. Returns the model that it holds, built without loading."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.files:
            shutil.copy(self.root / name, folder)
        config = {**self.config, "auto_map": dict(self.auto_map), **changes}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with transformers_4_names():
            built_config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
            auto_class = next(
                name for name in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel") if name in self.auto_map
            )
            model_class = get_class_from_dynamic_module(self.auto_map[auto_class], folder)
            patch_model_class(model_class)
            model = model_class(built_config)
        randomise(model, seed)
        unique = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()
                   if unique[id(tensor)] == name}  # fmt: skip
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return model.eval()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every matrix weights of which each matters: some classes start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            scale = parameter.shape[-1] ** -0.5
            parameter.data = torch.randn(parameter.shape, generator=generator).mul(scale).to(parameter)


def _decoder(name: str, model_class: str, config_class: str, *extra: str, model_type: str, **config: Any) -> RemoteFamily:
    auto_map = {
        "AutoConfig": f"configuration_{name}.{config_class}",
        "AutoModel": f"modeling_{name}.{model_class}",
    }
    settings = {"model_type": model_type, "architectures": [model_class], "mask_token_id": MASK, "dtype": "float32"}
    files = (f"configuration_{name}.py", f"modeling_{name}.py", "parts.py", *extra)
    return RemoteFamily(files, auto_map, {**settings, **config})


STANDIN_FAMILIES = {
    "llada": _decoder("llada", "LLaDAModelLM", "LLaDAConfig", model_type="llada"),
    "dream": _decoder("dream", "DreamModel", "DreamConfig", model_type="Dream"),
}
