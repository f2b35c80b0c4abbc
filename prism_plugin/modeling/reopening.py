"""Opens what an adapter would save before anything is trained: what cannot be opened again is refused when it is attached.

Only the config is written. Names and shapes are compared on a copy of the backbone that holds no values.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from prism_plugin.errors import ConfigurationError, StoredStateError
from prism_plugin.modeling.adapter_files import (
    active_adapter,
    adapter_tensors,
    prepared_config,
    read_adapter_config,
)
from prism_plugin.modeling.config_file import ADAPTER_CONFIG_FILE


def without_values(backbone: PreTrainedModel) -> PreTrainedModel | None:
    """Copy a model with its parameters and buffers on "meta"; None where its layers are more than their shapes (4 bits)."""
    if getattr(backbone, "is_quantized", False):
        return None
    empty: dict[int, torch.Tensor] = {}
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        bare = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        empty[id(tensor)] = nn.Parameter(bare, requires_grad=False) if is_parameter else bare
    try:
        return copy.deepcopy(backbone, empty)
    except (TypeError, RuntimeError):  # a repository's model may hold what cannot be copied, such as a lock
        return None


def require_reopening(
    wrapped: PeftModel, skeleton: PreTrainedModel | None, attach: Callable[[PreTrainedModel, PeftConfig], PeftModel]
) -> None:
    """Write a new adapter's config, read it again, and attach what was read once more.

    Args:
        wrapped: The backbone with its new adapter.
        skeleton: A copy of the backbone without the adapter, which is changed; None: only the config is looked at.
        attach: Puts an adapter on a model.

    Raises:
        ConfigurationError: If the config cannot be read again, or describes other tensors than those that are trained.
    """
    stored = reread_config(wrapped)
    if skeleton is None:
        return
    if isinstance(getattr(stored, "init_lora_weights", None), str):
        stored.init_lora_weights = False  # a start taken from the backbone's values changes no shape
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # all was said when the first was attached
            again = adapter_tensors(attach(skeleton, stored))
    except RuntimeError:  # NotImplementedError too: a few types look at the backbone's values
        return
    trained = adapter_tensors(wrapped)
    for key in sorted(trained.keys() | again.keys()):
        now, then = (tuple(tensors[key].shape) if key in tensors else "nothing" for tensors in (trained, again))
        if now != then:
            raise ConfigurationError(
                f"What `lora` trains must open again when it was saved, but {type(stored).__name__} would find {then} for "
                f"`{key}`, which is {now}; use another config, such as LoraConfig."
            )


def reread_config(wrapped: PeftModel) -> PeftConfig:
    """Write the active adapter's config, and read it as it is read when a model is loaded.

    Raises:
        ConfigurationError: If it cannot be read again, or several adapters are active.
    """
    adapter = wrapped.peft_config[active_adapter(wrapped)]
    with tempfile.TemporaryDirectory() as folder:
        prepared_config(adapter).save_pretrained(folder)
        try:
            return read_adapter_config(Path(folder) / ADAPTER_CONFIG_FILE)
        except StoredStateError as error:
            cause = str(error).removeprefix(f"{Path(folder) / ADAPTER_CONFIG_FILE}: ")
            raise ConfigurationError(
                f"What `lora` trains must open again when it was saved, but its {type(adapter).__name__} would not ({cause}); "
                "set what that names, or use LoraConfig."
            ) from error
