"""Writes the folder of a quality head, and puts the weights of one into a model.

    adapter_config.json, adapter_model.safetensors    PEFT's own, when there is an adapter
    prism_config.json                                 see `config_file`
    quality_head.safetensors                          the head, float32
    new_tokens.safetensors                            rows of tokens that the backbone got after it was loaded
    config.json, model*.safetensors                   the backbone, when it was trained or merged
    tokenizer files, README.md

A folder is whole exactly when prism_config.json is in it: that file leaves first and comes last.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prism_plugin.backbones import get_backbone_spec, looks_like_path, read_weights
from prism_plugin.errors import StoredStateError
from prism_plugin.modeling.adapter_files import (
    ADAPTER_FILE,
    adapter_tensors,
    put_adapter,
    write_adapter,
)
from prism_plugin.modeling.config import HEAD_SETTINGS, PrismConfig
from prism_plugin.modeling.config_file import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    HEAD_FILE,
    IN_THIS_FOLDER,
    SCALING,
    require_same_backbone,
    write_config,
)
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.model_card import CARD_FILE, CardFacts, render_model_card
from prism_plugin.modeling.new_tokens import ROWS_FILE, new_rows, put_rows, read_rows
from prism_plugin.modeling.stored_model import StoredModel, read_stored
from prism_plugin.modeling.strict_files import read_tensors, require_finite
from prism_plugin.modeling.trial_save import require_saveable
from prism_plugin.modeling.weights import bare_key, parameters_of, require_finite_weights, sharded_like, without_prefix
from prism_plugin.writing import staged_files

# ---- saving ----


def save_model(
    model: HeadedBackbone,
    directory: str | Path,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    facts: CardFacts | None = None,
) -> None:
    """Write a model's folder: what was trained and what is needed to load it, never a frozen backbone.

    Everything is written into a temporary folder first; if anything fails, what stood in `directory` is unchanged.

    Args:
        model: The model.
        directory: Folder, made if it is not there. Files of the same names are replaced, others stay.
        state_dict: Weights of the whole PrismModel, where they were gathered from shards; None: the model's own.
        facts: For the model card.

    Raises:
        SavingError: If the files cannot be written.
        BackboneError: If the backbone is to be written, and transformers refuses its config.
        NonFiniteError: If a weight is NaN or infinite.
        ConfigurationError: If several adapters are active.
    """
    directory = Path(directory)
    if model.holds_own_backbone:
        require_saveable(model.plain_backbone)
    with staged_files(directory, marker=CONFIG_FILE, stale=(ADAPTER_CONFIG_FILE, ADAPTER_FILE, ROWS_FILE)) as stage:
        config = write_files(model, stage, directory, state_dict=state_dict)
        has_adapter = isinstance(model.backbone, PeftModel)
        (stage / CARD_FILE).write_text(render_model_card(config, has_adapter=has_adapter, facts=facts), encoding="utf-8")


def write_files(
    model: HeadedBackbone,
    stage: Path,
    directory: Path,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    with_backbone: bool = False,
) -> PrismConfig:
    """Write all files of a model but its card.

    Args:
        model: The model.
        stage: Where they are written.
        directory: Where they will lie: a backbone in a folder is recorded as seen from there.
        state_dict: As for `save_model`.
        with_backbone: Write the backbone too where it was neither trained nor merged.

    Returns:
        The settings as they were written.

    Raises:
        NonFiniteError: If a weight is NaN or infinite.
        ConfigurationError: If several adapters are active.
    """
    weights = None if state_dict is None else {bare_key(key): value for key, value in state_dict.items()}
    backbone, has_adapter = model.backbone, isinstance(model.backbone, PeftModel)
    holds_backbone = with_backbone or model.holds_own_backbone
    config = model.prism_config
    if holds_backbone:
        base_model = config.base_model or _hub_id(config.backbone_name)
        config = replace(config, backbone_name=IN_THIS_FOLDER, base_model=base_model, backbone_resized_from=None)
    else:
        config = replace(config, backbone_name=_recorded_name(config.backbone_name, directory))
    of_backbone = None if weights is None else without_prefix(weights, "backbone.")
    head = model.quality_head.state_dict() if weights is None else without_prefix(weights, "quality_head.")
    require_finite_weights({f"quality_head.{name}": tensor for name, tensor in head.items()})
    if has_adapter:
        require_finite_weights(adapter_tensors(backbone, of_backbone))
        write_adapter(backbone, stage, base_model=config.backbone_name, state_dict=of_backbone)
    if holds_backbone:
        require_finite_weights(parameters_of(backbone, backbone.state_dict() if of_backbone is None else of_backbone))
        backbone.save_pretrained(stage, state_dict=of_backbone)
    if config.backbone_resized_from is not None:
        rows = new_rows(model.plain_backbone, model.spec, config.backbone_resized_from)
        require_finite_weights(rows)
        _write_tensors(rows, stage / ROWS_FILE)
    _write_tensors(head, stage / HEAD_FILE)
    if model.tokenizer is not None:
        _write_tokenizer(model.tokenizer, stage)
    write_config(config, stage, has_adapter=has_adapter)
    return config


def _write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, file)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # The tokenizers library raises bare Exceptions: "No space left on device (os error 28)".
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error


def save_scaling(directory: str | Path, *, temperature: float, bias: float) -> None:
    """Change how the quality head of a saved folder is scaled; no other file of it is touched.

    Args:
        directory: Folder that `save_model` wrote.
        temperature: Divides the head's logits as they were trained, > 0.
        bias: Added after the division.

    Raises:
        StoredStateError: If there is no such folder.
        ConfigurationError: If a number is out of range.
        SavingError: If the file cannot be written; the old one is unchanged then.
    """
    stored = read_stored(Path(directory))
    config = replace(stored.config, quality_temperature=temperature, quality_bias=bias)
    with staged_files(stored.folder, marker=CONFIG_FILE) as stage:
        write_config(config, stage, has_adapter=stored.adapter is not None)


def _hub_id(name: str | None) -> str | None:
    return None if name is None or looks_like_path(name) or Path(name).is_dir() else name


def _recorded_name(name: str | None, directory: Path) -> str | None:
    """A folder is recorded as seen from `directory`, so that both can move together and no machine's paths are told."""
    if name is None or not Path(name).is_dir():
        return name
    relative = os.path.relpath(Path(name).resolve(), directory.resolve())
    return relative if relative.startswith(".") else f"./{relative}"


# ---- loading ----


def load_weights(model: HeadedBackbone, directory: str | Path) -> None:
    """Put the weights of a folder into a model that was attached with the same settings. All of them, or none.

    Raises:
        StoredStateError: If the folder belongs to other settings, a file is missing, truncated or not as expected, or a weight
            is NaN or infinite.
        ConfigurationError: If several adapters of the model are active.
    """
    stored = read_stored(Path(directory))
    require_same_backbone(stored.config, stored.folder, model.plain_backbone, model.spec)
    has_adapter, family = isinstance(model.backbone, PeftModel), get_backbone_spec(model.plain_backbone)
    for key, expected, found in (
        ("has_adapter", has_adapter, stored.adapter is not None),
        # what is not written is what the family has by now, whoever says so
        ("logits_alignment", model.spec.logits_alignment, stored.config.logits_alignment or family.logits_alignment),
        *(
            (key, getattr(model.prism_config, key), getattr(stored.config, key))
            for key in ("mask_token_id", "head", *HEAD_SETTINGS, "head_history", "train_backbone", *SCALING)
        ),
    ):
        if expected != found:
            raise StoredStateError(
                f"{stored.folder / CONFIG_FILE}: `{key}` must be {expected!r} to fit this model, found {found!r}."
            )
    if (
        stored.holds_backbone
        and not stored.config.train_backbone
        and stored.backbone_location != model.prism_config.backbone_name
    ):
        raise StoredStateError(
            f"{stored.folder / CONFIG_FILE}: `backbone_name` must be this model's backbone, found one with merged weights "
            "in the folder itself; load it with `PrismModel.from_pretrained`."
        )
    backbone, spec, first = model.plain_backbone, model.spec, None
    if not model.holds_own_backbone:
        first = _require_new_rows(model, stored)
    rows = {} if first is None else read_rows(stored.folder, backbone, spec, first)
    of_head = model.quality_head.state_dict()
    head = read_tensors(stored.folder / HEAD_FILE, of_head)
    if has_adapter:
        expected = adapter_tensors(model.backbone)
        adapter = read_tensors(stored.folder / ADAPTER_FILE, expected, any_float=True)
    if model.prism_config.train_backbone:
        trained = read_weights(stored.folder, model.plain_backbone)
        require_finite(stored.folder, parameters_of(model.plain_backbone, trained))
        model.backbone.load_state_dict(sharded_like(model.backbone.state_dict(), trained))
    elif stored.holds_backbone:
        require_finite(stored.folder, dict(model.plain_backbone.named_parameters()))
    if first is not None:
        model.replaced_rows = put_rows(backbone, spec, first, rows) | model.replaced_rows
    if has_adapter:
        put_adapter(model.backbone, sharded_like(expected, adapter))
    model.quality_head.load_state_dict(sharded_like(of_head, head))


def _require_new_rows(model: HeadedBackbone, stored: StoredModel) -> int | None:
    """The first token that the backbone got after it was loaded, whose rows the folder holds; None where it got none.

    Raises:
        StoredStateError: If one of model and folder has such tokens, and the other has not.
    """
    needed, held = model.prism_config.backbone_resized_from, stored.config.backbone_resized_from
    if needed == held:
        return held
    raise StoredStateError(
        f"{stored.folder / CONFIG_FILE}: `backbone_resized_from` must be {needed!r} to fit this model, found {held!r}: rows of "
        "new tokens must be those that the head was trained with, and not what a resized backbone begins with; save the "
        "backbone that it was trained on into a folder of its own, and load it from there."
    )
