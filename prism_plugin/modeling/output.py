"""What one forward of a model with a quality head gives."""

from dataclasses import dataclass

from transformers.utils import ModelOutput

from prism_plugin.types import HiddenStates, PerToken, Rows


@dataclass
class PrismModelOutput(ModelOutput):
    """Result of one forward. A `ModelOutput`, because DDP, FSDP and accelerate look for tensors inside of those.

    Attributes:
        logits: Rows for the true positions of `logits_at` in row-major order; None when not asked for.
        quality_logits: Head output before the sigmoid, float32; None with `with_quality=False`.
        hidden_states: Final hidden states, the input of the head; None when not asked for.
    """

    logits: Rows | None = None
    quality_logits: PerToken | None = None
    hidden_states: HiddenStates | None = None
