"""The interface of MDLM: flash-attn at import and in its forward, times instead of a mask, no `get_output_embeddings`, plain
tuples by default, no post_init, and a last layer that starts at zero."""

import flash_attn
import flash_attn.layers.rotary
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_mdlm import MDLMConfig


class Rotary(nn.Module):
    """Keeps its frequencies in the checkpoint, and tables that grow on the side."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width))

    def forward(self, x):
        angles = torch.outer(torch.arange(x.shape[1], device=x.device).type_as(self.inv_freq), self.inv_freq)
        return angles.cos(), angles.sin()


class DDiTBlock(nn.Module):
    """Attention and MLP, both modulated by the time."""

    def __init__(self, config):
        super().__init__()
        size = config.hidden_dim
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(size, bias=False), nn.LayerNorm(size, bias=False)
        self.attn_qkv, self.attn_out = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(approximate="tanh"), nn.Linear(4 * size, size))
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * size)
        self.adaLN_modulation.weight.data.zero_()
        self.adaLN_modulation.bias.data.zero_()

    def drop(self, x):
        return F.dropout(x, p=self.dropout, training=self.training)

    def forward(self, x, cos_sin, c, seqlens=None):
        batch, length = x.shape[:2]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c)[:, None].chunk(6, dim=2)
        qkv = self.attn_qkv(self.norm1(x) * (1 + scale_a) + shift_a).unflatten(-1, (3, self.n_heads, -1))
        qkv = flash_attn.layers.rotary.apply_rotary_emb_qkv_(qkv, *(part.to(qkv.dtype) for part in cos_sin))
        lengths = torch.arange(0, (batch + 1) * length, step=length, dtype=torch.int32, device=x.device)
        attend = flash_attn.flash_attn_interface.flash_attn_varlen_qkvpacked_func
        attended = attend(qkv.flatten(0, 1), lengths, length, 0.0, causal=False).reshape(batch, length, -1)
        x = x + gate_a * self.drop(self.attn_out(attended))
        return x + gate_m * self.drop(self.mlp(self.norm2(x) * (1 + scale_m) + shift_m))


class EmbeddingLayer(nn.Module):
    """A table without `weight`."""

    def __init__(self, size, vocab_size):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, size))
        nn.init.kaiming_uniform_(self.embedding)

    def forward(self, x):
        return self.embedding[x]


class DDitFinalLayer(nn.Module):
    """Norm, modulation, LM head."""

    def __init__(self, config):
        super().__init__()
        self.norm_final = nn.LayerNorm(config.hidden_dim, bias=False)
        self.linear = nn.Linear(config.hidden_dim, config.vocab_size)
        self.linear.weight.data.zero_()
        self.linear.bias.data.zero_()
        self.adaLN_modulation = nn.Linear(config.cond_dim, 2 * config.hidden_dim)

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DITBackbone(nn.Module):
    """Everything. No time conditioning: the time is set to zero."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vocab_embed = EmbeddingLayer(config.hidden_dim, config.vocab_size)
        self.sigma_map = nn.Sequential(nn.Linear(1, config.cond_dim), nn.SiLU(), nn.Linear(config.cond_dim, config.cond_dim))
        self.rotary_emb = Rotary(config.hidden_dim // config.n_heads)
        self.blocks = nn.ModuleList(DDiTBlock(config) for _ in range(config.n_blocks))
        self.output_layer = DDitFinalLayer(config)

    def forward(self, indices, sigma, output_hidden_states=False):
        if not self.config.time_conditioning:
            sigma = torch.zeros_like(sigma)
        x, c = self.vocab_embed(indices), F.silu(self.sigma_map(sigma[:, None]))
        all_hidden_states, table = [x], self.rotary_emb(x)
        for block in self.blocks:
            x = block(x, table, c, seqlens=None)
            all_hidden_states.append(x)
        return self.output_layer(x, c), all_hidden_states


class MDLM(PreTrainedModel):
    """What transformers sees of it."""

    config_class = MDLMConfig
    base_model_prefix = "mdlm"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = DITBackbone(config)

    def forward(self, input_ids=None, timesteps=None, output_hidden_states=None, return_dict=None):
        return_dict = self.config.return_dict if return_dict is None else return_dict
        logits, all_hidden_states = self.backbone(input_ids, timesteps, output_hidden_states)
        return MaskedLMOutput(logits=logits, hidden_states=all_hidden_states) if return_dict else logits
