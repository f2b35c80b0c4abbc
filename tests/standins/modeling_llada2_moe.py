"""The interface of LLaDA2.x: fused attention weights, an import that is gone, a 2-D mask with a zero that makes the batch
causal, logits in float32, and an `AutoModel` without LM head."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils.import_utils import is_torch_fx_available

from .configuration_decoders import LLaDA2MoeConfig
from .parts import Experts, RMSNorm, Rotary, attend, key_mask

assert not is_torch_fx_available()


class LLaDA2MoeAttention(nn.Module):
    """One matrix for q, k and v, and `dense` behind."""

    def __init__(self, config):
        super().__init__()
        self.num_heads, self.attention_dropout = config.num_attention_heads, config.attention_dropout
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, table, mask):
        dropout = self.attention_dropout if self.training else 0.0
        return self.dense(attend(*self.query_key_value(x).chunk(3, dim=-1), self.num_heads, table, mask, dropout))


class LLaDA2MoeDecoderLayer(nn.Module):
    """A layer with experts."""

    def __init__(self, config):
        super().__init__()
        self.attention, self.mlp = LLaDA2MoeAttention(config), Experts(config)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(config.hidden_size), RMSNorm(config.hidden_size)

    def forward(self, x, table, mask):
        x = x + self.attention(self.input_layernorm(x), table, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LLaDA2MoePreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = LLaDA2MoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDA2MoeDecoderLayer"]  # noqa: RUF012

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=0.02)


class LLaDA2MoeModel(LLaDA2MoePreTrainedModel):
    """Without LM head."""

    def __init__(self, config):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LLaDA2MoeDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm, self.rotary_emb = RMSNorm(config.hidden_size), Rotary(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        assert not (self.config.use_cache if use_cache is None else use_cache), "a cache would be made"
        x, table = self.word_embeddings(input_ids), self.rotary_emb(input_ids.shape[1])
        mask = attention_mask
        if mask is not None and mask.dim() == 2:
            causal = torch.full((x.shape[1], x.shape[1]), -1e9, dtype=x.dtype).triu(1)
            mask = None if mask.all() else key_mask(mask, x.dtype) + causal
        elif mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill_(~mask, torch.finfo(x.dtype).min)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, table, mask)
            else:
                x = layer(x, table, mask)
        return MoeModelOutputWithPast(last_hidden_state=self.norm(x))


class LLaDA2MoeModelLM(LLaDA2MoePreTrainedModel):
    """With LM head."""

    _tied_weights_keys = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = LLaDA2MoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.word_embeddings

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, **kwargs):
        x = self.model(input_ids, attention_mask, use_cache).last_hidden_state
        return MoeCausalLMOutputWithPast(logits=self.lm_head(x).float())
