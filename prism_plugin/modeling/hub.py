"""Asks the Hub and gives to it: the licence of a base model, and a folder of ours."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi

from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.model_card import CardFacts, read_metadata


def upload(write: Callable[[Path], None], repo_id: str, *, private: bool | None, token: str | None, commit_message: str) -> str:
    """Write files into a temporary folder and upload them. Returns the address of the commit.

    Args:
        write: Writes into the folder that it is given, which is not there yet.
        repo_id: Repository, made if needed.
        private: Whether a new repository is private; None: as the account has it.
        token: Of the Hub; None: the one that is logged in.
        commit_message: Of the upload.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write(folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message).commit_url)


def require_shareable(config: PrismConfig) -> None:
    """Check that others can load the backbone of a head that is saved without it.

    Raises:
        ConfigurationError: If the backbone is known only as a folder of this machine.
    """
    name = config.backbone_name
    if name is not None and Path(name).is_dir():
        raise ConfigurationError(
            f"A head on the Hub needs a backbone that others can load, but this one is the local folder {name!r}; attach with "
            "`PrismConfig(backbone_name=<Hub id>)`, or call `merge_and_unload()` so that the backbone is uploaded too."
        )


def with_base_license(facts: CardFacts, config: PrismConfig, *, ask_hub: bool, token: str | None = None) -> CardFacts:
    """Add the licence that the backbone's own card states, where it can be found.

    Args:
        facts: What is known already; a licence in it stays.
        config: Names the backbone.
        ask_hub: Ask the Hub about an id; otherwise only a folder is looked into.
        token: Of the Hub.
    """
    name = config.backbone_name
    if facts.base_license is not None or name is None:
        return facts
    if Path(name).is_dir():
        found = read_metadata(Path(name)).get("license")
    elif not ask_hub:
        return facts
    else:
        try:
            card = HfApi(token=token).model_info(name, revision=config.backbone_revision).card_data
        except (OSError, ValueError):  # offline, gated, gone, no id: then the card says that it is not known
            return facts
        found = None if card is None else card.license
    return replace(facts, base_license=found) if isinstance(found, str) else facts
