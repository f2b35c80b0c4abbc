"""Training without dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Set every dropout probability of a model to zero, without leaving training mode.

    `eval()` would not do: transformers checkpoints activations only in training mode. The dropout modules are set, and the
    attention's dropout, which most classes keep as a float on the attention module and LLaDA reads from its config; all are put
    back at the end.
    """
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None))}
    changed: list[tuple[object, str, float]] = []
    for owner in owners.values():
        names = ["p"] if isinstance(owner, nn.modules.dropout._DropoutNd) else []
        held = getattr(owner, "__dict__", {})
        names += [name for name, value in held.items() if "dropout" in name and isinstance(value, float)]
        changed += [(owner, name, getattr(owner, name)) for name in names]
    try:
        for owner, name, _ in changed:
            setattr(owner, name, 0.0)
        yield
    finally:
        for owner, name, probability in changed:
            setattr(owner, name, probability)
