"""Where may be written: not over, in or around what is read, and not over files that somebody else wrote."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.modeling.adapter_files import ADAPTER_FILE
from prism_plugin.modeling.config_file import ADAPTER_CONFIG_FILE, CONFIG_FILE, HEAD_FILE
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.hub import facts_to_share
from prism_plugin.modeling.model_card import CARD_FILE, CardFacts, Figure
from prism_plugin.modeling.persistence import save_model

# What saving a model writes, tokenizer files apart: nobody's work is in those alone.
SAVED_FILES = (
    CONFIG_FILE, HEAD_FILE, ADAPTER_CONFIG_FILE, ADAPTER_FILE, CARD_FILE, "config.json", "generation_config.json",
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
)  # fmt: skip


def require_apart(target: Path, reads: Mapping[str, str | Path | None], what: str) -> None:
    """Check that a folder to be written neither is, nor holds, nor lies in anything that is read.

    Links are followed, and folders are compared by what the disk says, however they are spelt.

    Args:
        target: The folder, there or not.
        reads: What it is called in the error: a file or folder. What is not there, such as an id on the Hub, is passed over.
        what: What the target is called in the error.

    Raises:
        ConfigurationError: If they are not apart.
    """
    for name, given in reads.items():
        if not given or not Path(given).exists():
            continue
        path = Path(given)
        linked = [entry for entry in path.iterdir() if entry.is_symlink()] if path.is_dir() else []
        relation = (
            "is" if _is_same(target, path)
            else "lies in" if _lies_in(target, path)
            else "holds" if any(_lies_in(one, target) for one in (path, *linked))
            else None
        )  # fmt: skip
        if relation is not None:
            raise ConfigurationError(
                f"{what} must be apart from all that is read, but {target} {relation} {name}, {path}; choose another folder."
            )


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _lies_in(inner: Path, outer: Path) -> bool:
    """Whether a path lies in a folder, as it is written or where its links lead."""
    return outer.is_dir() and any(_is_same(one, outer) for one in (*inner.resolve().parents, *inner.absolute().parents))


def read_by(model: HeadedBackbone) -> dict[str, str | Path | None]:
    """What a model was read from, by what it is called in errors."""
    return {
        "the folder of the backbone": model.prism_config.backbone_name,
        "the folder that the backbone was loaded from": model.name_or_path,
        "the adapter that was loaded": model.loaded_from,
        "the folder of the tokenizer": getattr(model.tokenizer, "name_or_path", None),
    }


def require_nothing_foreign(folder: Path, what: str) -> None:
    """Check that saving a model into a folder replaces nobody else's files.

    Args:
        folder: The folder, there or not. One in which we have saved before is ours.
        what: What it is called in the error.

    Raises:
        SavingError: If it holds files that saving would write over, or mix with those of another model.
    """
    # In the folder itself, in a checkpoint, or in what was being written when a process was killed.
    if any(next(folder.glob(pattern), None) for pattern in (CONFIG_FILE, f"checkpoint-*/{CONFIG_FILE}", f".*/{CONFIG_FILE}")):
        return
    found = sorted({path.name for pattern in SAVED_FILES for path in folder.glob(pattern)})
    if found:
        raise SavingError(
            f"{what} {folder} holds {', '.join(found)}, which prism_plugin did not write and would write over or mix with; "
            "choose another folder, or move these files away."
        )


def save_into(
    model: HeadedBackbone,
    directory: str | Path,
    *,
    known: CardFacts | None,
    state_dict: Mapping[str, Tensor] | None = None,
    figures: Mapping[str, Figure] | None = None,
    checked: bool = False,
) -> None:
    """Save a model with its card, unless that would cost what it was read from, or files of others.

    Args:
        model: The model. One that was loaded from the folder may go back into it, with its backbone if that lies there.
        directory: The folder, there or not.
        known: What is known for the card.
        state_dict: Weights of the whole model where they were gathered from shards; None: the model's own.
        figures: Measured figures for the card; None: those that are known.
        checked: The folder was looked at before, when a run began in it: what came there since must not cost the result.

    Raises:
        SavingError: If the folder is that of the model's backbone, holds files of others, or cannot be written.
    """
    if not checked:
        _require_own_folder(model, Path(directory))
    facts = facts_to_share(known, model.prism_config, figures, ask_hub=False)
    save_model(model, directory, state_dict=state_dict, facts=facts)


def _require_own_folder(model: HeadedBackbone, folder: Path) -> None:
    backbones = (model.prism_config.backbone_name, model.name_or_path)
    replaced_whole = model.holds_own_backbone and (folder / CONFIG_FILE).exists()  # as one that was loaded from there
    if any(name and _is_same(folder, Path(name)) for name in backbones) and not replaced_whole:
        raise SavingError(
            f"A model must not be saved over its backbone, which it reads from {folder}; choose a folder of its own."
        )
    require_nothing_foreign(folder, "The folder")


def require_other_file(path: Path, reads: Mapping[str, Path | None]) -> None:
    """Check that a file to be written is none that is read.

    Args:
        path: The file, there or not.
        reads: What it is called in the error: a file, or None.

    Raises:
        ConfigurationError: If it is one of them.
    """
    for name, one in reads.items():
        if one is not None and one.exists() and _is_same(path, one):
            raise ConfigurationError(f"What is read must stay as it is, but {path} is {name}; choose another name to write to.")
