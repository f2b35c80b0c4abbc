"""What a backbone says of itself, written into the config of its quality head."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prism_plugin.backbones import BackboneSpec, check_backbone, hidden_size_of, resolve_mask_token_id
from prism_plugin.backbones.builtin import BUILTIN_SPECS
from prism_plugin.errors import BackboneError
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.heads import default_sizes
from prism_plugin.modeling.lm_head import has_row_gathering
from prism_plugin.modeling.new_tokens import resized_from
from prism_plugin.modeling.passthrough import BackbonePassthrough


def require_bare(backbone: Any) -> None:
    """Check, before anything is asked of a model's family, that it carries nothing that attaching puts on it.

    Raises:
        BackboneError: If it carries an adapter or a head.
    """
    if not isinstance(backbone, nn.Module):
        return  # whoever looks for its family says what it is
    if isinstance(backbone, BackbonePassthrough) or any(map(has_row_gathering, backbone.modules())):
        raise BackboneError("This model already carries a quality head; call `detach()` on its PrismModel first.")
    if isinstance(backbone, PeftModel) or "peft_config" in vars(backbone):
        raise BackboneError(
            "The backbone must be a plain model, but it carries a PEFT adapter; merge it with `merge_and_unload()` first, "
            "or pass the model without it and give `lora=`."
        )


def filled_in(
    config: PrismConfig, backbone: PreTrainedModel, spec: BackboneSpec, tokenizer: PreTrainedTokenizerBase | None
) -> PrismConfig:
    """Check a backbone, and write what is known about it into the config.

    Raises:
        BackboneError: If it cannot be used, or is another than the config says.
        MaskTokenError: If the mask token is unknown, outside the vocabulary, or not the tokenizer's.
    """
    check_backbone(backbone, spec, tokenizer)
    hidden_size = hidden_size_of(backbone.config, spec)
    facts = {
        "backbone_model_type": backbone.config.model_type,
        "backbone_hidden_size": hidden_size,
        "backbone_vocab_size": backbone.config.get_text_config().vocab_size,
    }
    for name, found in facts.items():
        expected = getattr(config, name)
        if expected not in (None, found):
            raise BackboneError(f"`{name}` of the PrismConfig is {expected!r}, but this backbone has {found!r}.")
    mask_token_id, _ = resolve_mask_token_id(config.mask_token_id, backbone.config, tokenizer, spec)
    where = config.backbone_name or backbone.config.name_or_path or None
    if where is not None and Path(where).is_dir():
        where = str(Path(where).resolve())
    revision = config.backbone_revision or getattr(backbone.config, "_commit_hash", None)
    sizes = {**default_sizes(config.head, hidden_size), **config.head_sizes()}
    facts |= {
        "backbone_resized_from": config.backbone_resized_from or resized_from(backbone, where, revision),
        "mask_token_id": mask_token_id,
        "head_hidden_size": sizes.get("inner_size"),
        "head_blocks": sizes.get("num_blocks"),
        "head_num_heads": sizes.get("num_heads"),
        "logits_alignment": config.logits_alignment or _unusual_alignment(spec),
        "objective": copy.deepcopy(config.objective),
    }
    return replace(config, backbone_name=where, backbone_revision=revision, **facts)


def _unusual_alignment(spec: BackboneSpec) -> str | None:
    """The alignment of a spec, if a process where nobody registered this spec would take another one."""
    shipped = next((one.logits_alignment for one in BUILTIN_SPECS if one.model_type == spec.model_type), "same_position")
    return spec.logits_alignment if spec.logits_alignment != shipped else None
