"""The two files of an adapter, as PEFT writes and reads them: of the one adapter that is active, whatever it is called.

PEFT writes every adapter of a model, and all but the one called "default" into folders of their own. What a model's folder
holds is what the model computes with, and lies in the folder itself.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from prism_plugin.errors import ConfigurationError, StoredStateError, UnknownKeyError
from prism_plugin.modeling.strict_files import read_json
from prism_plugin.reader import checked, refuse_unknown

ADAPTER_FILE = "adapter_model.safetensors"
_SCALES = ("lora_alpha", "alpha")  # declared as integers, and only multiplied by


def active_adapter(backbone: PeftModel) -> str:
    """The name of the one adapter that the model computes with.

    Raises:
        ConfigurationError: If it is none, or several.
    """
    active = backbone.active_adapters
    if len(active) != 1:
        raise ConfigurationError(
            f"One adapter must be active to be saved or loaded, found {', '.join(active) or 'none'}; choose one by "
            "`model.backbone.set_adapter(name)`, or merge them by `model.merge_and_unload()`."
        )
    return active[0]


def adapter_tensors(backbone: PeftModel, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What `write_adapter` writes, by the names in the file.

    Args:
        backbone: The model.
        state_dict: Its weights, where they were gathered from shards; None: its own.
    """
    name = active_adapter(backbone)
    # False: "auto" would ask the Hub whether the embeddings were resized.
    return get_peft_model_state_dict(backbone, state_dict=state_dict, adapter_name=name, save_embedding_layers=False)


def write_adapter(
    backbone: PeftModel, folder: Path, *, base_model: str | None, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write the active adapter's files into a folder that has no such files.

    Args:
        backbone: The model.
        folder: Where they shall lie.
        base_model: What the adapter's config says about the model that it belongs to.
        state_dict: As for `adapter_tensors`.
    """
    name = active_adapter(backbone)
    prepared_config(backbone.peft_config[name]).base_model_name_or_path = base_model
    backbone.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False, selected_adapters=[name])
    if name != "default":
        for path in (folder / name).iterdir():
            path.replace(folder / path.name)
        (folder / name).rmdir()


def prepared_config(adapter: PeftConfig) -> PeftConfig:
    """Put what is a set in order, so that the file is the same every time. Gives the same object."""
    for name, value in vars(adapter).items():
        if isinstance(value, set):
            setattr(adapter, name, sorted(value))
    return adapter


def put_adapter(backbone: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Give the active adapter the weights of a file."""
    set_peft_model_state_dict(backbone, tensors, adapter_name=active_adapter(backbone))


def read_adapter_config(path: Path) -> PeftConfig:
    """Read an adapter_config.json.

    Raises:
        StoredStateError: If it is missing, or not what the installed PEFT writes and takes.
    """
    values = read_json(path)
    peft_type = values.get("peft_type")
    if peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise StoredStateError(f"{path}: `peft_type` must be one that the installed PEFT knows, found {peft_type!r}.")
    known = set(inspect.signature(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]).parameters)
    try:
        refuse_unknown(values, known, source=str(path))
    except UnknownKeyError as error:
        raise StoredStateError(str(error)) from error
    try:
        return PeftConfig.from_peft_type(**values)
    except Exception as error:  # whatever PEFT makes of a value
        raise StoredStateError(refused(path, values, f"PEFT refuses it: {error}")) from error


def refused(path: Path, values: Mapping[str, Any], otherwise: str) -> str:
    """Say in one sentence why the config in a file cannot be used: the value that is of another type than PEFT has, if one is.

    Args:
        path: The file.
        values: What it says.
        otherwise: What to say where all are of their types.
    """
    config_type = PEFT_TYPE_TO_CONFIG_MAPPING[values["peft_type"]]
    for name, value in values.items():
        if isinstance(value, Mapping) or (name in _SCALES and isinstance(value, float)):
            continue
        try:
            checked(config_type, {name: value}, source=str(path))
        except ConfigurationError as error:
            return str(error)
    return f"{path}: {' '.join(otherwise.split())}"
