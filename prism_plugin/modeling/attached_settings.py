"""The settings of a backbone that its family wants otherwise while a quality head is attached."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.errors import BackboneError


def changed_settings(backbone: PreTrainedModel, spec: BackboneSpec) -> dict[str, tuple[Any, Any]]:
    """What `apply_settings` would change: dotted path of an attribute -> its value now, and the value while attached."""
    found = {path: getattr(*owner_of(backbone, path)) for path, _ in spec.settings_while_attached}
    return {path: (found[path], value) for path, value in spec.settings_while_attached if found[path] != value}


def apply_settings(backbone: PreTrainedModel, spec: BackboneSpec) -> None:
    """Set what the spec wants set while a quality head is attached."""
    for path, value in spec.settings_while_attached:
        owner, name = owner_of(backbone, path)
        setattr(owner, name, value)


@contextmanager
def settings_while_attached(backbone: PreTrainedModel, spec: BackboneSpec) -> Iterator[None]:
    """While open, a backbone has the settings of `apply_settings`; afterwards those that it had."""
    owners = [owner_of(backbone, path) for path, _ in spec.settings_while_attached]
    before = [(owner, name, getattr(owner, name)) for owner, name in owners]
    try:
        apply_settings(backbone, spec)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def owner_of(root: object, path: str) -> tuple[object, str]:
    """Follow a dotted path from a model to the object that has the attribute at its end.

    Raises:
        BackboneError: If the model has no such attribute.
    """
    *owners, name = path.split(".")
    backbone = root
    for owner in owners:
        root = getattr(root, owner, None)
    if not hasattr(root, name):
        raise BackboneError(
            f"`settings_while_attached` of a BackboneSpec must name attributes of the model, but {type(backbone).__name__} has "
            f"no `{path}`; correct the spec."
        )
    return root, name
