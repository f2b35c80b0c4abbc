"""Settings of attaching as people write them: dataclasses, or mappings such as a recipe has."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, PeftConfig

from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.reader import refuse_unknown


def as_prism_config(given: Any) -> PrismConfig:
    """Make a config of a mapping; None is the defaults.

    Raises:
        UnknownKeyError: If a key is unknown.
        ConfigurationError: If it is something else, or a value is of another type or out of range.
    """
    if given is None or isinstance(given, PrismConfig):
        return given or PrismConfig()
    if isinstance(given, Mapping):
        return PrismConfig.from_dict(given)
    raise ConfigurationError(
        f"`config` must be a PrismConfig or a mapping of its settings, such as {{'head': 'mlp'}}, found {type(given).__name__}."
    )


def as_adapter(given: Any) -> PeftConfig | None:
    """Make a LoraConfig of a mapping; None is no adapter.

    Raises:
        UnknownKeyError: If a key is none of LoraConfig's.
        ConfigurationError: If it is something else, or PEFT refuses a value.
    """
    if given is None or isinstance(given, PeftConfig):
        return given
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"`lora` must be a config of PEFT, or a mapping of LoraConfig's settings such as {{'r': 8}}, found "
            f"{type(given).__name__}."
        )
    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init} - {"peft_type"}
    refuse_unknown(given, known, source="lora")
    try:
        return LoraConfig(**given)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"PEFT cannot make a LoraConfig of `lora`: {error}") from error
