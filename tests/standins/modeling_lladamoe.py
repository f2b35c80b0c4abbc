"""The interface of LLaDA-MoE: experts behind a router called `gate`, and a 2-D mask that is honoured."""

from .configuration_decoders import LLaDAMoEConfig
from .parts import DecoderLayer, DecoderLM, DecoderModel, Experts


class LLaDAMoEDecoderLayer(DecoderLayer):
    """A Llama layer with experts."""

    def __init__(self, config):
        super().__init__(config, mlp=Experts)


class LLaDAMoEModel(DecoderModel):
    """Without LM head."""

    config_class, layer_class = LLaDAMoEConfig, LLaDAMoEDecoderLayer


class LLaDAMoEModelLM(DecoderLM):
    """With LM head."""

    config_class, model_class = LLaDAMoEConfig, LLaDAMoEModel
    _no_split_modules = ["LLaDAMoEDecoderLayer"]  # noqa: RUF012
