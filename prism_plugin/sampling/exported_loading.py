"""What loads the backbone of an exported sampler where its own code was written for transformers 4.

`prism_plugin.sampling.export` copies this module to the folder's `custom_generate/load_backbone.py`, and beside it all that it
imports.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from prism_plugin.backbones.devices import DeviceMap
from prism_plugin.backbones.loading import load_backbone
from prism_plugin.backbones.spec import register_backbone
from prism_plugin.modeling.config_file import IN_THIS_FOLDER, read_config
from prism_plugin.sampling.about_backbone import read_about_backbone


def load(
    folder: str | Path,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
) -> PreTrainedModel:
    """Load the backbone of an exported sampler, in evaluation mode; an adapter that lies beside is not put on it.

    Args:
        folder: The exported folder.
        trust_remote_code: Allow the backbone's own Python code to run.
        dtype: dtype of the weights; None takes the one they were saved in.
        device_map: Where the weights go, as transformers has it; None: the CPU.

    Raises:
        StoredStateError: If the folder is not whole.
        BackboneError: If the model cannot be loaded, or brings code that it was not allowed to run.
    """
    folder = Path(folder)
    config, _ = read_config(folder)
    register_backbone(read_about_backbone(folder).spec, replace=True)
    in_folder = config.backbone_name == IN_THIS_FOLDER
    return load_backbone(
        folder if in_folder else str(config.backbone_name),
        revision=None if in_folder else config.backbone_revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        device_map=device_map,
    )
