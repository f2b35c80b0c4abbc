"""The only `from_pretrained` of a backbone and of its tokenizer."""

from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from prism_plugin.backbones.spec import get_spec_by_model_type
from prism_plugin.errors import BackboneError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")


def load_backbone(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str | None = None,
) -> PreTrainedModel:
    """Load a pretrained masked diffusion model with its LM head, in evaluation mode.

    Args:
        name_or_path: A Hugging Face folder, or the id of a repository on the Hub.
        revision: Branch, tag or commit of the repository.
        trust_remote_code: Allow the repository's own Python code to run.
        dtype: dtype of the weights; None takes the one they were saved in.

    Raises:
        BackboneError: If there is no such model, it cannot be read, lacks weights, or its model type has no registered spec.
    """
    where = _checked_location(name_or_path)
    if Path(where).is_dir() and not (Path(where) / "config.json").is_file():
        raise BackboneError(f"The folder {where!r} must hold a transformers model, but it has no config.json.")
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"No config of a transformers model could be read from {where!r} ({_first_line(error)}); "
            "give a folder with a config.json, or a Hub id that can be reached or is cached."
        ) from error
    auto_class = getattr(transformers, get_spec_by_model_type(config.model_type).auto_class)
    try:
        backbone, info = auto_class.from_pretrained(
            where,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype or "auto",
            config=config,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BackboneError(
            f"The weights of the {config.model_type!r} backbone {where!r} could not be loaded ({_first_line(error)})."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would go on with random numbers
        raise BackboneError(
            f"{where!r} must hold every weight of {type(backbone).__name__}, but {len(missing)} are missing, "
            f"`{missing[0]}` first; take a checkpoint that was saved with its LM head."
        )
    return backbone


def load_tokenizer(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer that lies beside a model, or return None when there is none.

    Args:
        name_or_path: A Hugging Face folder, or the id of a repository on the Hub.
        revision: Branch, tag or commit of the repository.
        trust_remote_code: Allow the repository's own Python code to run.

    Raises:
        BackboneError: If tokenizer files are there but cannot be read, or the repository cannot be reached.
    """
    where = _checked_location(name_or_path)
    try:
        if not any(_has_file(where, name, revision) for name in TOKENIZER_FILES):
            return None
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"The tokenizer in {where!r} could not be read ({_first_line(error)}).") from error


def _has_file(where: str, name: str, revision: str | None) -> bool:
    if Path(where).is_dir():
        return (Path(where) / name).is_file()
    # Offline or unreachable still raises; only a repository that is known not to have the file gives None.
    return cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False) is not None


def _checked_location(name_or_path: str | Path) -> str:
    """Tell a folder that is not there from a Hub id, before anything asks the network about a path."""
    where, path = str(name_or_path), Path(name_or_path)
    looks_like_path = isinstance(name_or_path, Path) or where.startswith((".", "/", "~")) or where.count("/") > 1
    if looks_like_path and not path.is_dir():
        raise BackboneError(f"{where!r} must be a folder with a transformers model, but there is no such folder.")
    return where


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(". ") if str(error).strip() else type(error).__name__
