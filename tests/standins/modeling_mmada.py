"""The interface of MMaDA: LLaDA's model under a config of its own, which declares nothing of what it is given."""

from dataclasses import asdict

from transformers import PretrainedConfig

from .configuration_llada import ActivationCheckpointingStrategy, ModelConfig  # noqa: F401  # as the released code does
from .modeling_llada import LLaDAModelLM


class MMadaConfig(PretrainedConfig):
    """What config.json holds."""

    model_type = "mmada"

    def __init__(self, **kwargs):
        super().__init__(**{**asdict(ModelConfig()), **kwargs})


class MMadaModelLM(LLaDAModelLM):
    """With a vocabulary that holds images behind the text."""

    config_class = MMadaConfig
