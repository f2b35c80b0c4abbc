"""Which families of transformers the default suite takes through everything; the others are left to `pytest -m slow`."""

import pytest

from prism_plugin.testing import TINY_FAMILIES

# A family that something can break in, and what it has that the others have not.
AXES = {
    "bert": "a transform in front of the LM head, learned positions",
    "albert": "one layer called again and again, narrow embeddings, no checkpointing",
    "deberta-v2-lm-predictions": "relative positions in attention, an LM head that is the embeddings",
    "modernbert": "layers of two kinds, fused projections",
    "esm": "settings while attached",
    "dplm": "told by its config, needs a visible token",
    "llama": "a decoder with its mask turned off",
    "qwen3_moe": "experts",
    "gemma3_text": "windows on both sides, rotary tables for each kind of layer",
    "sdar": "attention by blocks of a length that its config says, in a class of another model type",
    "nemotron_labs_diffusion": "causal before the block that is written, weights under other names",
    "Fast_dLLM_Qwen": "the same with logits about the next token",
    "gpt2": "weights the other way round, positions under another name",
}


def with_marks(*names: str) -> list:
    """Parameters of a test: those families that are on no axis are marked slow."""
    rest = set(TINY_FAMILIES) - AXES.keys()
    return [pytest.param(name, marks=pytest.mark.slow) if name in rest else name for name in names]
