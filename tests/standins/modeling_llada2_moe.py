"""The interface of LLaDA2.x: fused attention weights, an import that is gone, a 2-D mask with a zero that makes the batch
causal, logits in float32, and an `AutoModel` without LM head."""

import torch
from torch import nn
from transformers.utils.import_utils import is_torch_fx_available

from .configuration_decoders import LLaDA2MoeConfig
from .parts import DecoderLayer, DecoderLM, DecoderModel, Experts, attend, key_mask

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


class LLaDA2MoeDecoderLayer(DecoderLayer):
    """A layer with experts."""

    def __init__(self, config):
        super().__init__(config, attention=LLaDA2MoeAttention, mlp=Experts)


class LLaDA2MoeModel(DecoderModel):
    """Without LM head."""

    config_class, layer_class = LLaDA2MoeConfig, LLaDA2MoeDecoderLayer

    def prepare(self, attention_mask, x):
        if attention_mask is None or (attention_mask.dim() == 2 and attention_mask.all()):
            return None
        if attention_mask.dim() == 2:
            return key_mask(attention_mask, x.dtype) + torch.full((x.shape[1], x.shape[1]), -1e9, dtype=x.dtype).triu(1)
        return torch.zeros_like(attention_mask, dtype=x.dtype).masked_fill_(~attention_mask, torch.finfo(x.dtype).min)


class LLaDA2MoeModelLM(DecoderLM):
    """With LM head."""

    config_class, model_class = LLaDA2MoeConfig, LLaDA2MoeModel
    _no_split_modules = ["LLaDA2MoeDecoderLayer"]  # noqa: RUF012

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        output = super().forward(input_ids, attention_mask, position_ids, **kwargs)
        output.logits = output.logits.float()
        return output
