"""What the stand-ins share. None of it is anybody's released code: only interfaces are reproduced, at a tiny size."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class RMSNorm(nn.Module):
    """x / rms(x), scaled."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class Rotary(nn.Module):
    """Looks its frequencies up in transformers, which no longer has the default ones, and keeps them out of checkpoints."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.rope_init_fn = ROPE_INIT_FUNCTIONS["default"]
        inv_freq, self.attention_scaling = self.rope_init_fn(config, None)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.original_inv_freq = self.inv_freq

    def forward(self, positions):
        angles = positions[:, None, :, None] * self.inv_freq.float()
        return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotate [batch, heads, length, width] by [batch or 1, 1, length, width / 2], in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


def attend(query, key, value, num_heads, table, mask=None, dropout=0.0):
    """Attention of [batch, length, width] with rotary positions; `mask` as in `scaled_dot_product_attention`."""
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    query, key = rotate(query, *table), rotate(key, *table)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """q, k, v and o, as in Llama."""

    def __init__(self, config, bias=False):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size, bias=bias) for _ in range(3))
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x, table, mask=None):
        dropout = self.attention_dropout if self.training else 0.0
        return self.o_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.num_heads, table, mask, dropout))


class GatedMLP(nn.Module):
    """down(silu(gate) * up)."""

    def __init__(self, size, inner):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """A router and its experts, all of which are computed: only the sum is of interest here."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(GatedMLP(config.hidden_size, config.intermediate_size) for _ in range(config.num_experts))

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(self.top_k, dim=-1)
        share = torch.zeros(*x.shape[:-1], len(self.experts), device=x.device, dtype=x.dtype).scatter(-1, chosen, weights)
        return sum(share[..., [index]] * expert(x) for index, expert in enumerate(self.experts))


def key_mask(attention_mask, dtype):
    """[batch, length] of 0 and 1 -> additive mask [batch, 1, 1, length]; None stays None."""
    if attention_mask is None:
        return None
    hidden = torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device)
    return hidden.masked_fill(attention_mask == 0, torch.finfo(dtype).min)[:, None, None, :]


class DecoderLayer(nn.Module):
    """A Llama layer; a family gives it its name, and its own attention or MLP."""

    def __init__(self, config, attention=SelfAttention, mlp=None):
        super().__init__()
        size = config.hidden_size
        self.self_attn = attention(config)
        self.mlp = GatedMLP(size, config.intermediate_size) if mlp is None else mlp(config)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(size), RMSNorm(size)

    def forward(self, x, table, mask):
        x = x + self.self_attn(self.input_layernorm(x), table, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class DecoderPreTrained(PreTrainedModel):
    """What the models with and without LM head share."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=0.02)


class DecoderModel(DecoderPreTrained):
    """Without LM head; a family gives `layer_class`."""

    layer_class, rotary_class = None, Rotary

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.layer_class(config) for _ in range(config.num_hidden_layers))
        self.norm, self.rotary_emb = RMSNorm(config.hidden_size), self.rotary_class(config)
        self.gradient_checkpointing = False
        self.post_init()

    def prepare(self, attention_mask, x):
        """Mask of the call -> mask of the layers."""
        return key_mask(attention_mask, x.dtype)

    def forward(self, input_ids, attention_mask=None, use_cache=None, position_ids=None):
        assert not (self.config.use_cache if use_cache is None else use_cache), "a cache would be made"
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        x, table = self.embed_tokens(input_ids), self.rotary_emb(position_ids)
        mask = self.prepare(attention_mask, x)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, table, mask)
            else:
                x = layer(x, table, mask)
        return self.norm(x)


class DecoderLM(DecoderPreTrained):
    """With LM head; a family gives `model_class`. The tied weights are a list, as in transformers 4."""

    model_class = None
    _tied_weights_keys = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None, num_logits_to_keep=0, **kwargs):
        x = self.model(input_ids, attention_mask, use_cache, position_ids)
        return CausalLMOutput(logits=self.lm_head(x[:, -num_logits_to_keep:, :]))
