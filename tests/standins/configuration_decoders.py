"""The configs of the stand-ins with Llama's names for sizes: Dream, LLaDA-MoE, LLaDA2 and iLLaDA."""

from transformers import PretrainedConfig


class DecoderConfig(PretrainedConfig):
    """What config.json holds."""

    def __init__(self, vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                 max_position_embeddings=64, rope_theta=10000.0, attention_dropout=0.0, num_experts=3,
                 num_experts_per_tok=2, tie_word_embeddings=False, use_cache=False, pad_token_id=0, **kwargs):  # fmt: skip
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.attention_dropout = attention_dropout
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, pad_token_id=pad_token_id, **kwargs)


class DreamConfig(DecoderConfig):
    """Dream's."""

    model_type = "Dream"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class LLaDAMoEConfig(DecoderConfig):
    """LLaDA-MoE's. Released under the model type of the dense models."""

    model_type = "llada"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class LLaDA2MoeConfig(DecoderConfig):
    """LLaDA2.0's and 2.1's."""

    model_type = "llada2_moe"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class ILLaDAConfig(DecoderConfig):
    """iLLaDA's."""

    model_type = "illada"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
