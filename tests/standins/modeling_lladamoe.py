"""The interface of LLaDA-MoE: as Dream's, with experts, a router called `gate`, and a 2-D mask that is honoured."""

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from .configuration_decoders import LLaDAMoEConfig
from .parts import Experts, RMSNorm, Rotary, SelfAttention, key_mask


class LLaDAMoEDecoderLayer(nn.Module):
    """A Llama layer with experts."""

    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = SelfAttention(config), Experts(config)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(config.hidden_size), RMSNorm(config.hidden_size)

    def forward(self, x, table, mask):
        x = x + self.self_attn(self.input_layernorm(x), table, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LLaDAMoEPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = LLaDAMoEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDAMoEDecoderLayer"]  # noqa: RUF012

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=0.02)


class LLaDAMoEModel(LLaDAMoEPreTrainedModel):
    """Without LM head."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LLaDAMoEDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm, self.rotary_emb = RMSNorm(config.hidden_size), Rotary(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        assert not (self.config.use_cache if use_cache is None else use_cache), "a cache would be made"
        x, table = self.embed_tokens(input_ids), self.rotary_emb(input_ids.shape[1])
        mask = key_mask(attention_mask, x.dtype)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, table, mask)
            else:
                x = layer(x, table, mask)
        return MoeModelOutputWithPast(last_hidden_state=self.norm(x))


class LLaDAMoEModelLM(LLaDAMoEPreTrainedModel):
    """With LM head."""

    _tied_weights_keys = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = LLaDAMoEModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, labels=None, num_logits_to_keep=0):
        assert labels is None, "no loss in the forward pass"
        x = self.model(input_ids, attention_mask, use_cache).last_hidden_state
        return MoeCausalLMOutputWithPast(logits=self.lm_head(x[:, -num_logits_to_keep:, :]))
