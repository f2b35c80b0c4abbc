"""The configs of MDLM and ProSeCo: sizes under names of their own."""

from transformers import PretrainedConfig


class MDLMConfig(PretrainedConfig):
    """What config.json holds."""

    model_type = "mdlm"

    def __init__(self, vocab_size=32, model_length=64, hidden_dim=16, cond_dim=8, n_blocks=2, n_heads=2, dropout=0.1,
                 time_conditioning=False, **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.model_length = model_length
        self.hidden_dim = hidden_dim
        self.cond_dim = cond_dim
        self.n_blocks = n_blocks
        self.n_heads = n_heads
        self.dropout = dropout
        self.time_conditioning = time_conditioning


class ProsecoConfig(MDLMConfig):
    """ProSeCo's."""

    model_type = "proseco"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
