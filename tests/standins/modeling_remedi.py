"""The interface of RemeDi: LLaDA with a second stream of blocks, which writes into the first and has its own confidence."""

from dataclasses import fields
from typing import NamedTuple

import torch
from torch import nn

from .configuration_remedi import ActivationCheckpointingStrategy, ModelConfig, RemeDiConfig
from .modeling_llada import LLaDALlamaBlock, LLaDAModel, LLaDAModelLM
from .parts import RMSNorm, key_mask


class RemeDiUPMOutput(NamedTuple):
    """No output of transformers: a tuple."""

    logits: torch.Tensor
    confidences: torch.Tensor


class RemeDiLlamaBlock(LLaDALlamaBlock):
    """A layer of either stream."""


class RemeDiUPMModel(LLaDAModel):
    """The inner model; its second stream is always recomputed in the backward pass."""

    def __init__(self, config):
        super().__init__(config)
        blocks = [RemeDiLlamaBlock(config, self.cache) for _ in range(2 * config.n_layers)]
        self.transformer["blocks"] = nn.ModuleList(blocks[: config.n_layers])
        self.blocks_upm = nn.ModuleList(blocks[config.n_layers :])
        self.backprop_linears = nn.ModuleList(nn.Linear(config.d_model, config.d_model) for _ in range(config.n_layers))
        self.backprop_norms = nn.ModuleList(RMSNorm(config.d_model) for _ in range(config.n_layers))
        self.ln_f_upm, self.linear_confidence = RMSNorm(config.d_model), nn.Linear(config.d_model, 1)

    def forward(self, input_ids, attention_mask=None, attention_bias=None, use_cache=False):
        x, second = self.transformer["emb_drop"](self.transformer["wte"](input_ids)), None
        attention_bias = key_mask(attention_mask, x.dtype)
        recompute = self.activation_checkpointing_strategy == ActivationCheckpointingStrategy.whole_layer
        streams = zip(
            self.transformer["blocks"], self.blocks_upm, self.backprop_norms, self.backprop_linears, strict=True
        )  # fmt: skip
        for block, other, norm, linear in streams:
            x, _ = (
                self._activation_checkpoint_fn(block, x, attention_bias=attention_bias)
                if recompute
                else block(x, attention_bias=attention_bias)
            )
            second = x if second is None else x + second
            second, _ = self._activation_checkpoint_fn(other, second, attention_bias=attention_bias)
            x = linear(norm(second)) + x
        logits = self.transformer["ff_out"](self.transformer["ln_f"](x))
        return RemeDiUPMOutput(logits, self.linear_confidence(self.ln_f_upm(second)).squeeze(-1))


class RemeDiUPMModelLM(LLaDAModelLM):
    """The outer model. It never calls `post_init`."""

    config_class = RemeDiConfig
    _no_split_modules = ["RemeDiBlock", "RemeDiSequentialBlock", "RemeDiLlamaBlock"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        model_config = ModelConfig(**{field.name: getattr(config, field.name) for field in fields(ModelConfig)})
        model_config.init_device = "cpu"
        self.model = RemeDiUPMModel(model_config)

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, attention_bias=None, use_cache=None,
                output_hidden_states=None, return_dict=None, position_ids=None):  # fmt: skip
        return self.model(input_ids, attention_mask, attention_bias, use_cache)
