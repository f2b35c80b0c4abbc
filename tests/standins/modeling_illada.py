"""The interface of iLLaDA: Llama's names, tied embeddings by a list, rotary frequencies by a formula of its own, no cache."""

import torch
from torch import nn

from .configuration_decoders import ILLaDAConfig
from .parts import DecoderLayer, DecoderLM, DecoderModel


class ILLaDARotaryEmbedding(nn.Module):
    """Keeps its frequencies out of checkpoints, and cannot be asked to compute them again."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size // config.num_attention_heads
        inv_freq = 1.0 / config.rope_theta ** (torch.arange(0, width, 2).float() / width)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, positions):
        angles = positions[:, None, :, None] * self.inv_freq.float()
        return angles.cos(), angles.sin()


class ILLaDADecoderLayer(DecoderLayer):
    """A Llama layer."""


class ILLaDAModel(DecoderModel):
    """Without LM head."""

    config_class, layer_class, rotary_class = ILLaDAConfig, ILLaDADecoderLayer, ILLaDARotaryEmbedding


class ILLaDAForCausalLM(DecoderLM):
    """With LM head, whose weight is the embeddings'."""

    config_class, model_class = ILLaDAConfig, ILLaDAModel
    _no_split_modules = ["ILLaDADecoderLayer"]  # noqa: RUF012

    def post_init(self):
        for name, module in self.named_modules():
            if name.endswith(("o_proj", "down_proj")):
                module.std = 0.01
        super().post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, logits_to_keep=0, **kwargs):
        return super().forward(input_ids, attention_mask, position_ids, num_logits_to_keep=logits_to_keep)
