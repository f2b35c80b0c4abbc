"""What an exported sampler has to know about its backbone: the file `backbone.json` beside its code."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.core.forbidding import runs_of
from prism_plugin.modeling.strict_files import read_json, stored
from prism_plugin.modeling.unknown_ids import SpecialTokens

# Lies beside generate.py: what has to be known about the family of the backbone and its tokenizer.
BACKBONE_FILE = "custom_generate/backbone.json"


@dataclass(frozen=True)
class AboutBackbone:
    """What the file holds."""

    spec: BackboneSpec
    tokenizer: SpecialTokens | None


def about_backbone(spec: BackboneSpec, tokenizer: Any, unknown_ids: tuple[int, ...]) -> str:
    """The text of the file, for a backbone of some family and the tokenizer that goes with it, if any.

    Args:
        spec: The family.
        tokenizer: The tokenizer, or None.
        unknown_ids: Ids of the vocabulary that it does not have.
    """
    ids = None if tokenizer is None else SpecialTokens(tokenizer.pad_token_id, tokenizer.eos_token_id, runs_of(unknown_ids))
    return json.dumps(asdict(AboutBackbone(spec, ids)), indent=2) + "\n"


def read_about_backbone(folder: Path) -> AboutBackbone:
    """Read what has to be known about a folder's backbone: its family, and what the sampler asks of its tokenizer, if any.

    Raises:
        StoredStateError: If the file is missing, damaged, or of another version of this code.
    """
    path = folder / BACKBONE_FILE
    return stored(AboutBackbone, path, read_json(path))
