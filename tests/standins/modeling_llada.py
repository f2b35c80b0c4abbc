"""The interface of LLaDA-8B: no post_init, old `tie_weights`, layers on a named device, checkpointing in words of its own."""

import functools
from dataclasses import fields

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_llada import ActivationCheckpointingStrategy, LLaDAConfig, ModelConfig
from .parts import RMSNorm, attend


class RotaryEmbedding(nn.Module):
    """Counts positions from 0, and is asked for as many as there are; all layers share one table."""

    def __init__(self, config, cache):
        super().__init__()
        self.config, self.cache = config, cache
        device = torch.device("cpu" if config.init_device is None else config.init_device)
        self.get_rotary_embedding(config.max_sequence_length, device)

    def get_rotary_embedding(self, seq_len, device, position_ids=None):  # the last is RemeDi's, which says it at each call
        if "rope" not in self.cache:
            width = self.config.d_model // self.config.n_heads
            inv_freq = self.config.rope_theta ** -(torch.arange(0, width, 2, device=device).float() / width)
            angles = torch.arange(self.config.max_sequence_length, device=device)[:, None] * inv_freq
            self.cache["rope"] = (angles.sin()[None, None], angles.cos()[None, None])
        return tuple(part[:, :, :seq_len].to(device) for part in self.cache["rope"])


class LLaDALlamaBlock(nn.Module):
    """A Llama layer with all its projections side by side, and `ff_out` beside the LM head of the same name."""

    def __init__(self, config, cache):
        super().__init__()
        self.config, self.rotary_emb = config, RotaryEmbedding(config, cache)
        linear = functools.partial(nn.Linear, bias=False, device=config.init_device)
        self.attn_norm, self.ff_norm = RMSNorm(config.d_model), RMSNorm(config.d_model)
        self.q_proj, self.k_proj, self.v_proj = (linear(config.d_model, config.d_model) for _ in range(3))
        self.attn_out = linear(config.d_model, config.d_model)
        self.ff_proj, self.up_proj = (linear(config.d_model, config.mlp_hidden_size) for _ in range(2))
        self.ff_out = linear(config.mlp_hidden_size, config.d_model)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x, attention_bias=None, layer_past=None, use_cache=False):
        sines, cosines = self.rotary_emb.get_rotary_embedding(x.shape[1], x.device, position_ids=None)
        normed, dropout = self.attn_norm(x), self.config.attention_dropout if self.training else 0.0
        heads = [self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)]
        x = x + self.dropout(self.attn_out(attend(*heads, self.config.n_heads, (cosines, sines), attention_bias, dropout)))
        normed = self.ff_norm(x)
        return x + self.dropout(self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))), None


class LLaDAModel(nn.Module):
    """The inner model, which is no transformers model."""

    def __init__(self, config):
        super().__init__()
        self.config, self.cache = config, {}
        self.activation_checkpointing_strategy = None
        self._activation_checkpoint_fn = functools.partial(checkpoint, use_reentrant=False)
        rows = config.embedding_size or config.vocab_size
        wte = nn.Embedding(rows, config.d_model, device=config.init_device)
        self.transformer = nn.ModuleDict({"wte": wte, "emb_drop": nn.Dropout(0.0), "ln_f": RMSNorm(config.d_model)})
        self.transformer["blocks"] = nn.ModuleList(LLaDALlamaBlock(config, self.cache) for _ in range(config.n_layers))
        if not config.weight_tying:
            head = nn.Linear(config.d_model, rows, bias=False, device=config.init_device)
            self.transformer["ff_out"] = head

    def set_activation_checkpointing(self, strategy):
        self.activation_checkpointing_strategy = strategy

    def forward(self, input_ids, attention_mask=None, attention_bias=None, use_cache=False):
        x = self.transformer["emb_drop"](self.transformer["wte"](input_ids))
        if attention_mask is not None and not self.config.ignores_mask:
            attention_bias = torch.zeros_like(attention_mask, dtype=x.dtype)
            attention_bias.masked_fill_(attention_mask == 0, torch.finfo(x.dtype).min)
            attention_bias = attention_bias[:, None, None, :]
        strategies = {ActivationCheckpointingStrategy.whole_layer: 1, ActivationCheckpointingStrategy.one_in_two: 2}
        every = strategies.get(self.activation_checkpointing_strategy)
        for index, block in enumerate(self.transformer["blocks"]):
            call = block
            if every is not None and index % every == 0:
                call = functools.partial(self._activation_checkpoint_fn, block)
            x, _ = call(x, attention_bias=attention_bias, layer_past=None, use_cache=use_cache)
        x = self.transformer["ln_f"](x)
        # A tied LM head is no module that a hook could see.
        return F.linear(x, self.transformer["wte"].weight) if self.config.weight_tying else self.transformer["ff_out"](x)


class LLaDAModelLM(PreTrainedModel):
    """The outer model. It never calls `post_init`."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    _no_split_modules = ["LLaDABlock", "LLaDASequentialBlock", "LLaDALlamaBlock"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        model_config = ModelConfig(**{field.name: getattr(config, field.name) for field in fields(ModelConfig)})
        model_config.init_device = "cpu"
        self.model = LLaDAModel(model_config)

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, attention_bias=None, use_cache=None,
                output_hidden_states=None, return_dict=None):  # fmt: skip
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return CausalLMOutputWithPast(logits=self.model(input_ids, attention_mask, attention_bias, use_cache))

    def get_input_embeddings(self):
        return self.model.transformer["wte"]

    def get_output_embeddings(self):
        return self.model.transformer["wte" if self.config.weight_tying else "ff_out"]

    def tie_weights(self):
        if self.config.weight_tying:
            self.model.transformer["ff_out"] = self.model.transformer["wte"]
