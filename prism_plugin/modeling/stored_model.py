"""What a folder, or a repository on the Hub, says of the model in it; and its parts, before a head is put on them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prism_plugin.backbones import DeviceMap, get_backbone_spec, load_backbone, load_tokenizer, looks_like_path
from prism_plugin.errors import AdapterConfigError, ConfigurationError, StoredStateError, UnreachableBackboneError
from prism_plugin.modeling.adapter_files import read_adapter_config, refused
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.config_file import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    IN_THIS_FOLDER,
    read_config,
    require_same_backbone,
)
from prism_plugin.modeling.new_tokens import put_rows, read_rows, resize_as_recorded
from prism_plugin.modeling.strict_files import read_json

_SAY_WHERE = "say where it is now by `backbone`"


@dataclass(frozen=True)
class StoredModel:
    """What a folder says about the model in it, before any tensor is read."""

    folder: Path
    config: PrismConfig
    adapter: PeftConfig | None

    @property
    def holds_backbone(self) -> bool:
        """The backbone's weights lie in the same folder."""
        return self.config.backbone_name == IN_THIS_FOLDER

    @property
    def backbone_location(self) -> str | None:
        """Hub id, or folder: names that start with "." count from the folder of the head."""
        name = self.config.backbone_name
        return str((self.folder / name).resolve()) if name is not None and name.startswith(".") else name


def read_stored(path_or_id: str | Path, *, revision: str | None = None) -> StoredModel:
    """Read what a folder, or a repository on the Hub, says about the model in it. No tensor is read yet.

    Raises:
        StoredStateError: If it cannot be found, or its prism_config.json or adapter_config.json is not what we write.
    """
    folder = locate(path_or_id, revision=revision)
    config, has_adapter = read_config(folder)
    return StoredModel(folder, config, read_adapter_config(folder / ADAPTER_CONFIG_FILE) if has_adapter else None)


def locate(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """Find a folder: itself, or where the Hub's copy of a repository lies.

    Raises:
        StoredStateError: If it is neither.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if isinstance(path_or_id, Path) or folder.is_absolute() or str(path_or_id).startswith(".") or len(folder.parts) > 2:
        raise StoredStateError(f"{str(path_or_id)!r} must be a folder with a {CONFIG_FILE}, but there is no such folder.")
    try:
        return Path(snapshot_download(str(path_or_id), revision=revision))
    except (OSError, ValueError) as error:
        raise StoredStateError(
            f"{str(path_or_id)!r} is neither a folder nor a repository that can be reached or is cached "
            f"({type(error).__name__}); check the name, or go online."
        ) from error


def load_parts(
    stored: StoredModel,
    backbone: PreTrainedModel | str | Path | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    trust_remote_code: bool,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, PrismConfig]:
    """Load what was not given: the backbone, and the tokenizer beside the head or else beside the backbone.

    Args:
        stored: What the folder says.
        backbone: The backbone, or where it is; None: where the folder says.
        tokenizer: The tokenizer; None: the one that is found.
        trust_remote_code: Allow the backbone's repository to run its own Python code.
        dtype: As for `load_backbone`.
        device_map: As for `load_backbone`.

    Returns:
        Both, and the folder's settings with the place where the backbone was found.

    Raises:
        ConfigurationError: If a backbone is given for a folder that holds its own, or none is given and none recorded.
        StoredStateError: If the backbone is not the one that the head was trained on.
        BackboneError: If the backbone cannot be loaded.
        UnreachableBackboneError: If it is not where the folder says.
    """
    if backbone is not None and stored.holds_backbone:
        raise ConfigurationError(
            f"{str(stored.folder)!r} holds the backbone that its head was trained with; leave `backbone` (`--backbone`) out."
        )
    config = replace(stored.config, **_found_at(stored, backbone))
    if tokenizer is None:
        tokenizer = load_tokenizer(stored.folder, trust_remote_code=trust_remote_code)
    if backbone is None or isinstance(backbone, str | Path):
        location = _recorded_place(stored) if backbone is None else str(backbone)
        with_code: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": _revision(stored, location)}
        try:
            loaded = load_backbone(location, dtype=dtype, device_map=device_map, **with_code)
        except UnreachableBackboneError as error:
            if backbone is not None:
                raise
            raise UnreachableBackboneError(
                f"{stored.folder / CONFIG_FILE} says that the backbone is {location!r}, which could not be loaded; "
                f"{_SAY_WHERE}: {error}"
            ) from error
        if tokenizer is None:
            tokenizer = load_tokenizer(location, **with_code)
        _add_new_tokens(stored, loaded)
        backbone = loaded
    require_same_backbone(stored.config, stored.folder, backbone, get_backbone_spec(backbone))
    return backbone, tokenizer, config


def refused_adapter(stored: StoredModel, error: AdapterConfigError) -> StoredStateError:
    """What is wrong with the adapter_config.json of a folder, as somebody may have changed it."""
    path = stored.folder / ADAPTER_CONFIG_FILE
    return StoredStateError(refused(path, read_json(path), str(error).replace("`lora`", "this adapter")))


def _add_new_tokens(stored: StoredModel, backbone: PreTrainedModel) -> None:
    """Give a backbone that was just loaded the tokens that it had when the head was trained."""
    before, vocab_size = stored.config.backbone_resized_from, stored.config.backbone_vocab_size
    if before is None or vocab_size is None:
        return
    if backbone.config.get_text_config().vocab_size == before:
        resize_as_recorded(backbone, vocab_size)
    spec = get_backbone_spec(backbone)
    require_same_backbone(stored.config, stored.folder, backbone, spec)
    put_rows(backbone, spec, before, read_rows(stored.folder, backbone, spec, before))


def _recorded_place(stored: StoredModel) -> str:
    """Where the backbone is, as the folder says.

    Raises:
        ConfigurationError: If it does not say.
        UnreachableBackboneError: If it names a folder that is not there.
    """
    name, location = stored.config.backbone_name, stored.backbone_location
    if name is None or location is None:
        raise ConfigurationError(
            f"{stored.folder / CONFIG_FILE} does not say which backbone it belongs to; say where it is by `backbone` (on the "
            "command line `--backbone`)."
        )
    if looks_like_path(location) and not Path(location).is_dir():
        seen = f", counted from its own folder, which would be {location}" if name.startswith(".") else ""
        raise UnreachableBackboneError(
            f"{stored.folder / CONFIG_FILE} says that the backbone is in {name!r}{seen}, but there is no such folder, so one "
            f"of the two was moved; {_SAY_WHERE}, or move them together."
        )
    return location


def _revision(stored: StoredModel, location: str) -> str | None:
    """The recorded commit, for the recorded repository."""
    return stored.config.backbone_revision if location == stored.config.backbone_name and not Path(location).is_dir() else None


def _found_at(stored: StoredModel, given: PreTrainedModel | str | Path | None) -> dict[str, Any]:
    """What is recorded of the backbone from now on. An id on the Hub stays: a copy of it on this machine is the same one."""
    location = stored.backbone_location
    if location is not None and not looks_like_path(location) and not Path(location).is_dir():
        return {}
    where = given if given is None or isinstance(given, str | Path) else given.config.name_or_path
    if where:
        return {"backbone_name": str(where), "backbone_revision": None}
    return {"backbone_name": location}
