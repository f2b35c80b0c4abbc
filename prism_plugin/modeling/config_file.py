"""prism_config.json: how it is written and read, and whether the head that it describes fits a backbone.

It holds `format_version`, `has_adapter` and the fields of PrismConfig; those that scale the quality, `base_model` and
`logits_alignment` only where they are set. Beside it lie the head, and PEFT's own files where `has_adapter` says so.
"""

import json
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from prism_plugin.backbones.spec import BackboneSpec, hidden_size_of
from prism_plugin.errors import StoredStateError
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.strict_files import read_json, stored
from prism_plugin.reader import without_version

FORMAT_VERSION = 1
CONFIG_FILE = "prism_config.json"
HEAD_FILE = "quality_head.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
IN_THIS_FOLDER = "."
# Written where they change something: a version that does not know them reads a folder without them, and refuses one with.
SCALING = {"quality_temperature": 1.0, "quality_bias": 0.0}
_OF_HEADS = {"head_blocks": None, "head_num_heads": None, "head_taps": None, "head_history": ()}
_OPTIONAL = {**SCALING, **_OF_HEADS, "base_model": None, "backbone_resized_from": None, "logits_alignment": None}


def write_config(config: PrismConfig, folder: Path, *, has_adapter: bool) -> None:
    """Write the prism_config.json of a folder."""
    values = {key: value for key, value in config.to_dict().items() if key not in _OPTIONAL or value != _OPTIONAL[key]}
    content = {"format_version": FORMAT_VERSION, "has_adapter": has_adapter, **values}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> tuple[PrismConfig, bool]:
    """Read the prism_config.json of a folder: the settings, and whether an adapter lies beside.

    Raises:
        StoredStateError: If it is missing, or not what we write.
    """
    path = folder / CONFIG_FILE
    values = without_version(read_json(path), FORMAT_VERSION, source=str(path))
    has_adapter = values.pop("has_adapter", None)
    if not isinstance(has_adapter, bool) or has_adapter != (folder / ADAPTER_CONFIG_FILE).is_file():
        expected = f"go with {ADAPTER_CONFIG_FILE}, which is {'' if (folder / ADAPTER_CONFIG_FILE).is_file() else 'not '}there"
        raise StoredStateError(f"{path}: `has_adapter` must {expected}, found {has_adapter!r}.")
    return stored(PrismConfig, path, values, optional=_OPTIONAL), has_adapter


def require_same_backbone(config: PrismConfig, folder: Path, backbone: PreTrainedModel, spec: BackboneSpec) -> None:
    """Check that a backbone is of the kind that the head in a folder was trained on.

    Raises:
        StoredStateError: If it is not, or of another revision, or the recorded mask token is outside its vocabulary.
    """
    path = folder / CONFIG_FILE
    text_config = backbone.config.get_text_config()
    if config.backbone_resized_from == text_config.vocab_size != config.backbone_vocab_size:
        raise StoredStateError(
            f"{path}: the head was trained on this backbone with its embeddings resized from {config.backbone_resized_from} "
            f"tokens to {config.backbone_vocab_size}; call `backbone.resize_token_embeddings({config.backbone_vocab_size})` "
            "first, or give its folder or id."
        )
    for key, expected in (
        ("backbone_model_type", backbone.config.model_type),
        ("backbone_hidden_size", hidden_size_of(backbone.config, spec)),
        ("backbone_vocab_size", text_config.vocab_size),
    ):
        found = getattr(config, key)
        if found != expected:
            raise StoredStateError(
                f"{path}: `{key}` must be {expected!r} to fit this backbone, found {found!r}; "
                "load it with the backbone that it was trained on."
            )
    _require_same_revision(config, path, backbone.config)
    if not isinstance(config.mask_token_id, int) or not 0 <= config.mask_token_id < text_config.vocab_size:
        raise StoredStateError(
            f"{path}: `mask_token_id` must lie in the backbone's vocabulary, [0, {text_config.vocab_size}), "
            f"found {config.mask_token_id!r}."
        )


def _require_same_revision(config: PrismConfig, path: Path, found: PreTrainedConfig) -> None:
    """Refuse a backbone that was loaded from the Hub at another commit than the head was trained on. A folder has none."""
    trained_on, commit = config.backbone_revision, getattr(found, "_commit_hash", None)
    if None in (trained_on, commit) or trained_on == commit or found.name_or_path != config.backbone_name:
        return
    raise StoredStateError(
        f"{path}: the head was trained on {config.backbone_name!r} at revision {trained_on}, and this backbone is of revision "
        f"{commit}, whose weights may be others; leave `backbone` out or load it with `revision={trained_on!r}`, or give a "
        "folder that holds it if you know that its weights are the same."
    )
