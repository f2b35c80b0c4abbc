"""Training without dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Set every dropout probability of a model to zero, without leaving training mode.

    `eval()` would not do: transformers checkpoints activations only in training mode. Both the dropout modules and the
    attention's dropout, which most classes keep as a float on the attention module, are set; all are put back at the end.
    """
    changed: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        names += [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]
        changed += [(module, name, getattr(module, name)) for name in names]
    try:
        for module, name, _ in changed:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, probability in changed:
            setattr(module, name, probability)
