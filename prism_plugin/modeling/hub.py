"""Asks the Hub and gives to it: the licence of a base model, and a folder of ours."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.utils import validate_repo_id

from prism_plugin.errors import ConfigurationError, PrismError, SavingError
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.model_card import CardFacts, Figure, read_metadata
from prism_plugin.modeling.persistence import save_model
from prism_plugin.modeling.trial_save import require_saveable


@contextmanager
def uploading(repo_id: str) -> Iterator[None]:
    """What the network, the Hub or a missing token refuses within becomes one sentence.

    Args:
        repo_id: Repository, for the sentence.

    Raises:
        SavingError: If something is refused.
        PrismError: What we refuse ourselves, as it came.
    """
    try:
        yield
    except PrismError:
        raise
    except Exception as error:  # whatever the library under huggingface_hub raises, which is another one with each version
        cause = next(iter(str(error).strip().splitlines()), "").rstrip(". ") or type(error).__name__
        raise SavingError(
            f"Nothing can be uploaded to {repo_id!r} ({cause}); go online, log in with `hf auth login`, correct the name, or "
            "leave the upload out."
        ) from error


def require_hub(repo_id: str, token: str | None = None) -> None:
    """Check, before the work whose result is to be uploaded, that the Hub can be reached and knows who asks.

    Args:
        repo_id: Repository; without an owner, one of who is logged in.
        token: Of the Hub; None: the one that is logged in.

    Raises:
        SavingError: If it cannot, or no repository can have that name.
    """
    with uploading(repo_id):
        validate_repo_id(repo_id)
        _require_online()
        HfApi(token=token).whoami()


def _require_online() -> None:
    if constants.HF_HUB_OFFLINE:  # who has no token either would be told of that alone
        raise OSError("offline mode is on, `HF_HUB_OFFLINE`")


def upload(write: Callable[[Path], None], repo_id: str, *, private: bool | None, token: str | None, commit_message: str) -> str:
    """Write files into a temporary folder and upload them. Returns the address of the commit.

    Args:
        write: Writes into the folder that it is given, which is not there yet.
        repo_id: Repository, made if needed; without an owner, one of who is logged in.
        private: Whether a new repository is private; None: as the account has it.
        token: Of the Hub; None: the one that is logged in.
        commit_message: Of the upload.

    Raises:
        SavingError: If the Hub refuses it, or cannot be reached; before anything is written, where that shows.
    """
    require_hub(repo_id, token)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write(folder)
        # A name without an owner is put under who is logged in, and an upload has to name both.
        with uploading(repo_id):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message).commit_url)


def require_shareable(config: PrismConfig) -> None:
    """Check that others can load the backbone of a head that is saved without it.

    Raises:
        ConfigurationError: If the backbone is known only as a folder of this machine.
    """
    name = config.backbone_name
    if name is not None and Path(name).is_dir():
        raise ConfigurationError(
            f"A head for others needs a backbone that others can load, but this one is the local folder {name!r}; attach with "
            "`PrismConfig(backbone_name=<Hub id>)`, or let its weights go along: `merge_and_unload()`, or an export with "
            "`merge=True`."
        )


def facts_to_share(
    known: CardFacts | None,
    config: PrismConfig,
    figures: Mapping[str, Figure] | None,
    *,
    ask_hub: bool,
    token: str | None = None,
) -> CardFacts:
    """Gather what the model card tells, with the licence that the backbone's own card states, where it can be found.

    Args:
        known: What is known already.
        config: Names the backbone.
        figures: Take the place of the known ones; None: those stay.
        ask_hub: Ask the Hub about an id; otherwise only a folder is looked into.
        token: Of the Hub.
    """
    facts = known or CardFacts()
    facts = facts if figures is None else replace(facts, figures=figures)
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


def push_model(
    model: HeadedBackbone,
    repo_id: str,
    *,
    known: CardFacts | None,
    figures: Mapping[str, Figure] | None,
    private: bool | None,
    token: str | None,
    commit_message: str,
    sampler: Mapping[str, Any] | None = None,
    also: Callable[[Path], object] | None = None,
) -> str:
    """Upload what `save_model` writes. Returns the address of the commit.

    Args:
        model: The model.
        repo_id: As for `upload`.
        known: What is known for the model card.
        figures: Measured figures for the model card; None: those that are known.
        private: As for `upload`.
        token: As for `upload`.
        commit_message: As for `upload`.
        sampler: Settings of a sampler for the model card.
        also: Writes more files into the folder.

    Raises:
        ConfigurationError: If the backbone is known only as a folder of this machine.
        SavingError: If the files cannot be written, or the Hub refuses them or cannot be reached.
    """
    backbone = model.plain_backbone
    if model.holds_own_backbone:
        require_saveable(backbone)
    else:
        require_shareable(model.prism_config)
    facts = facts_to_share(known, model.prism_config, figures, ask_hub=True, token=token)

    def write(folder: Path) -> None:
        save_model(model, folder, facts=replace(facts, sampler=sampler))
        if also is not None:
            also(folder)

    return upload(write, repo_id, private=private, token=token, commit_message=commit_message)
