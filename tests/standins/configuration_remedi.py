"""The config of RemeDi: LLaDA's, under another model type."""

from .configuration_llada import ActivationCheckpointingStrategy, LLaDAConfig, ModelConfig  # noqa: F401  # read by name


class RemeDiConfig(LLaDAConfig):
    """What config.json holds."""

    model_type = "RemeDi"

    def __init__(self, use_cache=False, **kwargs):  # transformers would write another
        super().__init__(use_cache=use_cache, **kwargs)
