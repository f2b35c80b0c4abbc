"""Checks a spec against a live model. They read attributes only: no forward pass, so a sharded model can be checked too."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.errors import BackboneError


def check_backbone(backbone: PreTrainedModel, spec: BackboneSpec, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Refuse a model that cannot carry a quality head as it is.

    Args:
        backbone: The user's model.
        spec: What is claimed about it.
        tokenizer: The tokenizer that will be used with it, if any.

    Raises:
        BackboneError: If the model has no LM head where the spec says, attends to the left only, or has a smaller vocabulary
            than the tokenizer.
    """
    name = type(backbone).__name__
    if _submodule(backbone, spec.final_hidden_at) is None or backbone.get_output_embeddings() is None:
        raise BackboneError(
            f"A {spec.model_type!r} backbone must have its LM head behind a module `{spec.final_hidden_at}`, which {name} "
            f"lacks; load it with `{spec.auto_class}`."
        )
    if spec.causal_by_default and getattr(backbone.config, "is_causal", True):
        raise BackboneError(
            f"A masked diffusion model attends to both sides, but {name} attends to the left only; if it was trained with "
            "bidirectional attention, set `backbone.config.is_causal = False` before attaching."
        )
    if getattr(backbone.config, "is_decoder", False):
        raise BackboneError(
            f"A masked diffusion model attends to both sides, but {name} has `config.is_decoder=True`; "
            "load it with `is_decoder=False`."
        )
    vocab_size = backbone.config.get_text_config().vocab_size
    if tokenizer is not None and len(tokenizer) > vocab_size:
        raise BackboneError(
            f"The tokenizer has {len(tokenizer)} tokens, but {name} has a vocabulary of {vocab_size}; "
            "pass the tokenizer that belongs to this model, or resize the model's embeddings."
        )


def _submodule(model: PreTrainedModel, path: str) -> object | None:
    found = dict(model.named_modules(remove_duplicate=False))
    return found.get(path)
