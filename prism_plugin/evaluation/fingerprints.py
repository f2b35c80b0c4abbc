"""Whether rows and a model are those of before: hashes of what they hold, wherever they lie."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from prism_plugin.errors import DataFormatError
from prism_plugin.modeling import PrismModel

_LENGTH = 16  # hexadecimal digits that are kept
# What a config says of a model's place and making, and not of what it computes.
_NOT_COMPUTED = {
    "_name_or_path", "transformers_version", "base_model_name_or_path", "peft_version", "auto_mapping", "revision",
    "inference_mode", "backbone_name", "backbone_revision", "base_model", "objective", "base_rate", "train_backbone",
}  # fmt: skip


def file_fingerprint(path: Path, used: str = "") -> str:
    """Hash a file, and what is used of it.

    Raises:
        DataFormatError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error}") from error
    digest.update(used.encode())
    return digest.hexdigest()[:_LENGTH]


def model_fingerprint(model: PrismModel) -> str:
    """Hash all that an answer depends on: weights, in their dtype, what scales them, and the tokenizer."""
    digest = hashlib.sha256()
    configs: list[Any] = [model.plain_backbone.config.to_dict(), model.prism_config.to_dict()]
    if isinstance(model.backbone, PeftModel):
        configs += [config.to_dict() for _, config in sorted(model.backbone.peft_config.items())]
    digest.update(json.dumps([_computed(config) for config in configs], sort_keys=True, default=_plain).encode())
    if model.tokenizer is not None:
        about = [model.tokenizer.get_vocab(), model.tokenizer.all_special_tokens, model.tokenizer.chat_template]
        digest.update(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_LENGTH]


def _computed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOT_COMPUTED}


def _plain(value: Any) -> Any:
    """What JSON has no form for; a set has no order of its own."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
