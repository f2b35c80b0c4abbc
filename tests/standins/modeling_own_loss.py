"""Code as block diffusion models bring it (SDAR, Fast-dLLM v2): in training mode it makes its own noise and its own loss.

So it wants labels then, takes a row for two views of it that lie side by side, and gives no logits. Else it is a Llama.
"""

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.llama.modeling_llama import LlamaAttention


class OwnLossConfig(LlamaConfig):
    """`labels_first`: refuse rows without labels as Fast-dLLM v2 does, by an AttributeError; or as SDAR, by an assertion."""

    model_type = "own_loss"
    labels_first: bool = True
    most_tokens: int = 64


class OwnLossAttention(LlamaAttention):
    """In training mode each view gets the positions of its own half."""

    def forward(self, hidden_states, *args, **kwargs):
        half = hidden_states.shape[1] // 2 if self.training else None
        return super().forward(hidden_states[:, :half], *args, **kwargs)


class OwnLossForCausalLM(LlamaForCausalLM):
    """With LM head."""

    config_class = OwnLossConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.__class__ = OwnLossAttention

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        assert input_ids.shape[1] <= self.config.most_tokens, f"at most {self.config.most_tokens} tokens"
        if self.training:
            if self.config.labels_first:
                labels = labels.clone()
            assert labels is not None, "Labels must be provided for training."
            return CausalLMOutput(loss=self.model(input_ids).last_hidden_state.mean())
        return super().forward(input_ids, attention_mask=attention_mask, **kwargs)
