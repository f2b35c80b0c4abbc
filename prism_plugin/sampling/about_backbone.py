"""What an exported sampler has to know about its backbone: the file `backbone.json` beside its code."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.modeling.strict_files import read_json, require_keys

# Lies beside generate.py: what has to be known about the family of the backbone, and two token ids.
BACKBONE_FILE = "custom_generate/backbone.json"


@dataclass(frozen=True)
class SpecialTokens:
    """What the sampler asks of a tokenizer."""

    pad_token_id: int | None
    eos_token_id: int | None


def about_backbone(spec: BackboneSpec, tokenizer: Any) -> str:
    """The text of the file, for a backbone of some family and the tokenizer that goes with it, if any."""
    ids = None if tokenizer is None else asdict(SpecialTokens(tokenizer.pad_token_id, tokenizer.eos_token_id))
    return json.dumps({"spec": asdict(spec), "tokenizer": ids}, indent=2) + "\n"


def read_about_backbone(folder: Path) -> tuple[BackboneSpec, SpecialTokens | None]:
    """Read what has to be known about a folder's backbone: its family, and what the sampler asks of its tokenizer, if any.

    Raises:
        StoredStateError: If the file is missing, damaged, or of another version of this code.
    """
    path = folder / BACKBONE_FILE
    values = read_json(path)
    require_keys(path, values, {"spec", "tokenizer"})
    spec, ids = values["spec"], values["tokenizer"]
    require_keys(path, spec, {one.name for one in fields(BackboneSpec)})
    if ids is not None:
        require_keys(path, ids, {one.name for one in fields(SpecialTokens)})
    tokenizer = None if ids is None else SpecialTokens(**ids)
    return BackboneSpec(**{name: _as_tuples(value) for name, value in spec.items()}), tokenizer


def _as_tuples(value: Any) -> Any:
    """JSON has lists only; a spec holds tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
