"""Which released code of families the contract was run on, and whether a model runs that code."""

import functools
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from prism_plugin.backbones.probe import Check

RECORD = Path(__file__).with_name("contract.json")
NAME = "own_code"


@functools.cache
def recorded() -> dict[str, Any]:
    """What the contract's last run wrote down: dates and versions, what passed, and the code by its hashes."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def hash_of(path: Path) -> str:
    """A file's SHA-256, whatever ends its lines."""
    return hashlib.sha256("\n".join(path.read_text(encoding="utf-8").splitlines()).encode()).hexdigest()


def check_own_code(backbone: PreTrainedModel) -> Check | None:
    """Say whether the code that a repository brought for a model is code that the contract was run on.

    It judges nothing, and so it passes: a repository's code may change in what does not matter.

    Args:
        backbone: The model.

    Returns:
        None for a class of transformers.
    """
    classes = {type(module) for module in backbone.modules()} | {type(backbone.config)}
    files = {Path(inspect.getfile(one)) for one in classes if one.__module__.startswith("transformers_modules.")}
    if not files:
        return None
    found = {path.name: recorded()["code"].get(hash_of(path)) for path in sorted(files, key=lambda path: path.name)}
    other = [name for name, known in found.items() if known is None]
    if not other:
        return Check(NAME, True, None, f"the code that was tested ({'; '.join(sorted(set(found.values())))})")
    return Check(
        NAME, True, None,
        f"{', '.join(other)}: not the code that was tested on {recorded()['date']} (docs/families.md), so what the spec says "
        "was not tried on it; the other checks here were, now. If they pass, go on, and pin the revision by `--revision`.",
    )  # fmt: skip
