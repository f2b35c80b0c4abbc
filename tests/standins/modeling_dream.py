"""The interface of Dream-7B: RoPE "default", a list of tied weights, masks only as bool [batch, 1, length, length], logits
about the next token, and a `from_pretrained` of its own."""

import torch

from .configuration_decoders import DreamConfig
from .parts import DecoderLayer, DecoderLM, DecoderModel


class DreamDecoderLayer(DecoderLayer):
    """A Llama layer."""


class DreamBaseModel(DecoderModel):
    """Without LM head."""

    config_class, layer_class = DreamConfig, DreamDecoderLayer

    def prepare(self, attention_mask, x):
        if isinstance(attention_mask, torch.Tensor) and (attention_mask.dtype != torch.bool or attention_mask.dim() != 4):
            raise TypeError("attn_mask must be bool [batch, 1, length, length] or 'full'")
        return attention_mask if isinstance(attention_mask, torch.Tensor) else None


class DreamModel(DecoderLM):
    """With LM head."""

    config_class, model_class = DreamConfig, DreamBaseModel
    _no_split_modules = ["DreamDecoderLayer"]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        model = super().from_pretrained(*args, **kwargs)
        model.generation_config = None  # breaks where anything but the model comes back
        return model
