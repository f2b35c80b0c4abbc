"""Checkpoints of weights that FSDP2 shards: what is gathered is what was trained, never the frozen backbone."""

from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import StateDictType

from prism_plugin.errors import ConfigurationError

if TYPE_CHECKING:
    from accelerate import FullyShardedDataParallelPlugin


def check_sharding(
    plugin: "FullyShardedDataParallelPlugin",
    mixed_precision: str,
    *,
    is_quantized: bool = False,
    has_new_tokens: bool = False,
) -> None:
    """Refuse what would change the head's precision, or could not be resumed.

    Args:
        plugin: What accelerate was told about FSDP.
        mixed_precision: Of accelerate: "no", "bf16" or "fp16".
        is_quantized: Whether the backbone has quantised weights.
        has_new_tokens: Whether the backbone got tokens after it was loaded.

    Raises:
        ConfigurationError: If one of the settings cannot be used.
    """
    if plugin.fsdp_version != 2:
        raise ConfigurationError(
            f"Sharding needs FSDP version 2, got {plugin.fsdp_version}; set `fsdp_version: 2` in accelerate's config file."
        )
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ConfigurationError(
            f"`fsdp_state_dict_type` must be FULL_STATE_DICT, got {plugin.state_dict_type.name}, whose files are read with "
            "pickle; what is gathered is the small part that is trained."
        )
    if mixed_precision != "no":
        raise ConfigurationError(
            f"Under FSDP, mixed precision {mixed_precision!r} would cast the float32 head and LoRA to it; set `bf16: false` "
            "and `mixed_precision: 'no'`, and load the frozen weights in `backbone.dtype: bfloat16`."
        )
    if has_new_tokens:
        raise ConfigurationError(
            "Under FSDP the rows of tokens that a backbone got after it was loaded could not be saved with checkpoints; save "
            "the backbone with its resized embeddings into a folder, and load it from there."
        )
    if is_quantized:
        raise ConfigurationError(
            "FSDP leaves 4-bit weights whole on every process; leave `backbone.quantization` out, or train with DDP."
        )


def gather_trained(model: nn.Module) -> dict[str, Tensor]:
    """Full tensors of the parameters that get a gradient, on the CPU of the main process; nothing elsewhere. Collective."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(model, options=options)  # type: ignore[return-value]  # parameters are tensors


def save_optimizer(accelerator: Accelerator, model: nn.Module, optimizer: Any, directory: str) -> None:
    """Write the optimizer's state of the trained parameters. Collective.

    transformers writes the model beside it, and all of it where that is no PeftModel: 16 GB for LLaDA-8B.
    """
    save_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, optimizer, model, directory)
