"""Tokens that a backbone got after it was loaded, by `resize_token_embeddings`: no checkpoint has their rows, so they go along.

They are frozen as the rest is, and random unless somebody gave them values: a head that was trained with them fits no others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prism_plugin.backbones import BackboneSpec, input_embeddings_of, lm_head_of, stated_config
from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.modeling.strict_files import read_tensors

ROWS_FILE = "new_tokens.safetensors"


def resized_from(backbone: PreTrainedModel, name: str | None, revision: str | None) -> int | None:
    """The vocabulary that a backbone was loaded with, where it has a larger one now. Only what lies on this disk is looked at.

    Args:
        backbone: The model.
        name: What is recorded as its folder or Hub id, for where it does not say itself what it was loaded from.
        revision: Commit of that.

    Returns:
        The old size; None where it is the same, or nothing tells.

    Raises:
        ConfigurationError: If it has a smaller one now: which rows were kept is known to nobody.
    """
    config = backbone.config.get_text_config()
    loaded_from = backbone.config.name_or_path
    stated = stated_config(loaded_from or name, None if loaded_from and loaded_from != name else revision)
    key = config.attribute_map.get("vocab_size", "vocab_size")
    before = next((one[key] for one in (stated, stated.get("text_config") or {}) if key in one), None)
    if not isinstance(before, int) or before == config.vocab_size:
        return None
    if before > config.vocab_size:
        raise ConfigurationError(
            f"The backbone has {config.vocab_size} tokens, but was loaded with {before}, and which of them were kept could not "
            "be told again; save the backbone with its smaller vocabulary into a folder, and load it from there."
        )
    return before


def new_rows(backbone: PreTrainedModel, spec: BackboneSpec, first: int) -> dict[str, Tensor]:
    """The rows from `first` on of the embeddings and of the LM head, as views into the backbone's weights.

    Raises:
        SavingError: If the weights are shared out over processes.
    """
    rows, seen = {}, set()
    for part, module in (("embeddings", input_embeddings_of(backbone, spec)), ("lm_head", lm_head_of(backbone, spec))):
        for name, weight in _without_adapter(module).named_parameters(recurse=False):
            if id(weight) in seen:  # tied
                continue
            seen.add(id(weight))
            if len(weight) != backbone.config.get_text_config().vocab_size or hasattr(weight, "device_mesh"):
                raise SavingError(
                    "Rows of new tokens are saved from whole weights, but these are sharded; save the backbone with its "
                    "resized embeddings into a folder, load it from there, and train on that."
                )
            rows[f"{part}.{name}"] = weight.detach()[first:]
    return rows


def resize_as_recorded(backbone: PreTrainedModel, vocab_size: int) -> None:
    """Give a backbone the vocabulary that a head was trained with; its new rows are those of `put_rows`.

    Raises:
        ConfigurationError: If its embeddings are offloaded.
    """
    if backbone.get_input_embeddings().weight.is_meta:
        raise ConfigurationError(
            f"The embeddings of this backbone are to be resized to {vocab_size} tokens, but they are offloaded; give a "
            "`device_map` that keeps them on a device."
        )
    with torch.random.fork_rng(devices=[]):
        backbone.resize_token_embeddings(vocab_size, mean_resizing=False)


def read_rows(folder: Path, backbone: PreTrainedModel, spec: BackboneSpec, first: int) -> dict[str, Tensor]:
    """Read the rows that lie in a folder.

    Raises:
        StoredStateError: If they are not there, damaged, or not those of this backbone.
    """
    return read_tensors(folder / ROWS_FILE, new_rows(backbone, spec, first), any_float=True)


def put_rows(backbone: PreTrainedModel, spec: BackboneSpec, first: int, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write rows into a backbone.

    Returns:
        Those that stood there, where they were others.
    """
    before, views = {}, new_rows(backbone, spec, first)
    for name, row in rows.items():
        new = row.to(views[name])
        if not torch.equal(new, views[name]):
            before[name] = views[name].clone()
            views[name].copy_(new)
    return before


def _without_adapter(module: Any) -> Any:
    """The layer itself, where PEFT has put another one around it."""
    for name in ("original_module", "base_layer"):
        while hasattr(module, name):
            module = getattr(module, name)
    return module
