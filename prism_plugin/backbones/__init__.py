"""What differs between masked diffusion language models, as data."""

from prism_plugin.backbones.builtin import BUILTIN_SPECS
from prism_plugin.backbones.call import attention_blocks, call_arguments, pad_rows, pairwise_mask, require_visible_token
from prism_plugin.backbones.devices import DeviceMap, best_device, require_device, require_placement
from prism_plugin.backbones.inference import describe, get_backbone_spec, infer_spec
from prism_plugin.backbones.loading import (
    build_backbone,
    has_weights,
    load_backbone,
    load_tokenizer,
    looks_like_path,
    read_weights,
    stated_config,
)
from prism_plugin.backbones.modes import dropout_off, evaluation_mode, kept_random_state
from prism_plugin.backbones.probe import Check, check_backbone, max_row_length, require_ok
from prism_plugin.backbones.spec import (
    BackboneSpec,
    device_of,
    get_spec_by_model_type,
    hidden_size_of,
    input_embeddings_of,
    is_registered,
    lm_head_of,
    register_backbone,
    resolve_mask_token_id,
    vocab_size_of,
)

for _spec in BUILTIN_SPECS:
    register_backbone(_spec)

__all__ = [
    "BackboneSpec",
    "Check",
    "DeviceMap",
    "attention_blocks",
    "best_device",
    "build_backbone",
    "call_arguments",
    "check_backbone",
    "describe",
    "device_of",
    "dropout_off",
    "evaluation_mode",
    "get_backbone_spec",
    "get_spec_by_model_type",
    "has_weights",
    "hidden_size_of",
    "infer_spec",
    "input_embeddings_of",
    "is_registered",
    "kept_random_state",
    "lm_head_of",
    "load_backbone",
    "load_tokenizer",
    "looks_like_path",
    "max_row_length",
    "pad_rows",
    "pairwise_mask",
    "read_weights",
    "register_backbone",
    "require_device",
    "require_ok",
    "require_placement",
    "require_visible_token",
    "resolve_mask_token_id",
    "stated_config",
    "vocab_size_of",
]
