"""The interface of Dream-7B: RoPE "default", a list of tied weights, masks only as bool [batch, 1, length, length]."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_decoders import DreamConfig
from .parts import GatedMLP, RMSNorm, Rotary, SelfAttention


class DreamDecoderLayer(nn.Module):
    """A Llama layer."""

    def __init__(self, config):
        super().__init__()
        self.self_attn = SelfAttention(config, bias=True)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(config.hidden_size), RMSNorm(config.hidden_size)

    def forward(self, x, table, attention_mask):
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) else None
        x = x + self.self_attn(self.input_layernorm(x), table, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class DreamPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = DreamConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DreamDecoderLayer"]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        model = super().from_pretrained(*args, **kwargs)
        model.generation_config = None  # breaks where anything but the model comes back
        return model

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=0.02)


class DreamBaseModel(DreamPreTrainedModel):
    """Without LM head."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DreamDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size)
        self.rotary_emb = Rotary(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        assert not (self.config.use_cache if use_cache is None else use_cache), "a cache would be made"
        x, table = self.embed_tokens(input_ids), self.rotary_emb(input_ids.shape[1])
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, table, attention_mask)
            else:
                x = layer(x, table, attention_mask)
        return self.norm(x)


class DreamModel(DreamPreTrainedModel):
    """With LM head. The logit at a position is about the token after it."""

    _tied_weights_keys = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = DreamBaseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, num_logits_to_keep=0, **loss_kwargs):
        if isinstance(attention_mask, torch.Tensor) and (attention_mask.dtype != torch.bool or attention_mask.dim() != 4):
            raise TypeError("attn_mask must be bool [batch, 1, length, length] or 'full'")
        x = self.model(input_ids, attention_mask, use_cache)
        return MaskedLMOutput(logits=self.lm_head(x[:, -num_logits_to_keep:, :]))
