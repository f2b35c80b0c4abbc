"""The config of LLaDA: a dataclass for the inner model, and a transformers config with all its fields."""

from dataclasses import asdict, dataclass
from enum import StrEnum

from transformers import AutoConfig, PretrainedConfig


class ActivationCheckpointingStrategy(StrEnum):
    """How many layers recompute their activations."""

    whole_layer = "whole_layer"
    one_in_two = "one_in_two"


@dataclass
class ModelConfig:
    """Sizes, in OLMo's words."""

    d_model: int = 16
    n_heads: int = 2
    n_layers: int = 2
    mlp_hidden_size: int = 32
    vocab_size: int = 32
    embedding_size: int | None = None
    max_sequence_length: int = 64
    rope_theta: float = 10000.0
    weight_tying: bool = False
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    ignores_mask: bool = False  # as the code did before October 2025
    init_device: str | None = None
    pad_token_id: int = 0
    eos_token_id: int = 1
    mask_token_id: int | None = None


class LLaDAConfig(PretrainedConfig):
    """What config.json holds."""

    model_type = "llada"

    def __init__(self, use_cache=False, **kwargs):
        super().__init__(**{**asdict(ModelConfig()), "use_cache": use_cache, **kwargs})

    hidden_size = property(lambda self: self.d_model)
    num_hidden_layers = property(lambda self: self.n_layers)
    num_attention_heads = property(lambda self: self.n_heads)


AutoConfig.register("llada", LLaDAConfig)  # for the whole process, also for LLaDA-MoE, which has the same model type
