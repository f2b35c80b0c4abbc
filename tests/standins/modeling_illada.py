"""The interface of iLLaDA: Llama's names, tied embeddings by a list, rotary frequencies by a formula of its own, no cache."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_decoders import ILLaDAConfig
from .parts import GatedMLP, RMSNorm, SelfAttention, key_mask


class ILLaDARotaryEmbedding(nn.Module):
    """Keeps its frequencies out of checkpoints, and cannot be asked to compute them again."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size // config.num_attention_heads
        inv_freq = 1.0 / config.rope_theta ** (torch.arange(0, width, 2).float() / width)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, length):
        angles = torch.arange(length, device=self.inv_freq.device)[:, None] * self.inv_freq.float()
        return angles.cos(), angles.sin()


class ILLaDADecoderLayer(nn.Module):
    """A Llama layer."""

    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = SelfAttention(config), GatedMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(config.hidden_size), RMSNorm(config.hidden_size)

    def forward(self, x, table, mask):
        x = x + self.self_attn(self.input_layernorm(x), table, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class ILLaDAPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = ILLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ILLaDADecoderLayer"]  # noqa: RUF012

    def post_init(self):
        for name, module in self.named_modules():
            if name.endswith(("o_proj", "down_proj")):
                module.std = 0.01
        super().post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=getattr(module, "std", 0.02))


class ILLaDAModel(ILLaDAPreTrainedModel):
    """Without LM head."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ILLaDADecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm, self.rotary_emb = RMSNorm(config.hidden_size), ILLaDARotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        x, table = self.embed_tokens(input_ids), self.rotary_emb(input_ids.shape[1])
        mask = key_mask(attention_mask, x.dtype)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, table, mask)
            else:
                x = layer(x, table, mask)
        return self.norm(x)


class ILLaDAForCausalLM(ILLaDAPreTrainedModel):
    """With LM head, whose weight is the embeddings'."""

    _tied_weights_keys = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = ILLaDAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, logits_to_keep=0, **kwargs):
        x = self.model(input_ids, attention_mask)
        return CausalLMOutput(logits=self.lm_head(x[:, -logits_to_keep:, :]))
