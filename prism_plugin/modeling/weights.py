"""Weights by their names: which of a gathered state belong to a part, how they are placed, and whether they may be saved."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from prism_plugin.core.finite import first_not_finite
from prism_plugin.errors import NonFiniteError


def bare_key(key: str) -> str:
    """A name without what `torch.compile` puts before it."""
    return key.replace("_orig_mod.", "")


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def parameters_of(backbone: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that are parameters. A buffer may hold what is not finite, such as minus infinity in an attention mask."""
    return {name: weights[name] for name, _ in backbone.named_parameters() if name in weights}


def sharded_like(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor the placement of the parameter that takes it. Collective where parameters are sharded (FSDP2)."""
    return {
        key: distribute_tensor(tensors[key], one.device_mesh, one.placements) if isinstance(one, DTensor) else tensors[key]
        for key, one in parameters.items()
    }


def require_finite_weights(weights: Mapping[str, Tensor]) -> None:
    """Check weights that shall be saved.

    Raises:
        NonFiniteError: If one is NaN or infinite.
    """
    name = first_not_finite(weights)
    if name is not None:
        raise NonFiniteError(
            f"Weights must be finite to be saved, but `{name}` holds NaN or infinity, so nothing was written; go back to the "
            "weights of before, and train at a lower learning rate if training made them so."
        )
