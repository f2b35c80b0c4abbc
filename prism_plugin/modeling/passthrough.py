"""What Trainer, accelerate and PEFT look for on the model they are given, answered by the backbone."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prism_plugin.backbones.modes import recomputes_by_itself
from prism_plugin.backbones.spec import BackboneSpec, device_of, input_embeddings_of, lm_head_of
from prism_plugin.errors import BackboneError


class _OfBackbone:
    """A read-only attribute of the backbone.

    Where the backbone has none: the default, or no attribute either, since accelerate measures the device map that it finds.
    """

    def __init__(self, *default: Any) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: "BackbonePassthrough | None", owner: type) -> Any:
        return self if model is None else getattr(model.plain_backbone, self.name, *self.default)


class BackbonePassthrough(nn.Module):
    """A module with a `backbone` that passes for a transformers model where libraries ask."""

    backbone: Any  # a PreTrainedModel, or a PeftModel around one
    spec: BackboneSpec

    accepts_loss_kwargs = False  # Trainer would otherwise guess from the signature whether to divide by accumulation steps
    main_input_name = "input_ids"

    config = _OfBackbone()
    dtype = _OfBackbone()
    name_or_path = _OfBackbone()
    hf_device_map = _OfBackbone()  # accelerate asks by `hasattr`, then takes its length
    hf_quantizer = _OfBackbone(None)
    quantization_method = _OfBackbone(None)
    is_quantized = _OfBackbone(False)
    is_loaded_in_4bit = _OfBackbone(False)
    is_loaded_in_8bit = _OfBackbone(False)
    is_activation_checkpointing = _OfBackbone(False)

    @property
    def device(self) -> torch.device:
        """Where the backbone takes its input, also if its weights are offloaded."""
        return device_of(self.get_input_embeddings())

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the layers can recompute their activations, in the mode in which the family is trained."""
        backbone = self.plain_backbone
        in_mode = not self.spec.keeps_evaluation_mode or any(map(recomputes_by_itself, backbone.modules()))
        return self.spec.activation_checkpointing and in_mode and getattr(backbone, "supports_gradient_checkpointing", False)

    @property
    def _no_split_modules(self) -> list[str] | None:
        # FSDP and accelerate read the layers to wrap here. LLaDA's own list names classes that it does not have.
        return list(self.spec.layer_classes) or getattr(self.plain_backbone, "_no_split_modules", None)

    @property
    def plain_backbone(self) -> PreTrainedModel:
        """The transformers model, without the PeftModel around it."""
        # Only a PeftModel has the method. Asked in this way, since an exported sampler runs where PEFT is not installed.
        return self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The older name of `is_activation_checkpointing`, which PEFT and TRL still read."""
        return self.is_activation_checkpointing

    @property
    def _hf_peft_config_loaded(self) -> bool:
        # transformers refuses to train a quantised model unless this says that there is an adapter.
        return self.backbone is not self.plain_backbone

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's input embeddings."""
        return input_embeddings_of(self.plain_backbone, self.spec)

    def get_output_embeddings(self) -> Any:
        """Return the backbone's LM head."""
        return lm_head_of(self.plain_backbone, self.spec)

    def tie_weights(self) -> None:
        """Tie the backbone's weights again, as transformers does after loading."""
        self.plain_backbone.tie_weights()

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count parameters, backbone included: all, those that get a gradient, or all but the input embeddings."""
        excluded = {id(p) for p in self.get_input_embeddings().parameters()} if exclude_embeddings else set()
        counted = (p for p in self.parameters() if id(p) not in excluded)
        return sum(p.numel() for p in counted if p.requires_grad or not only_trainable)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute the backbone's activations in the backward pass; the arguments are those of transformers.

        Raises:
            BackboneError: If the layers of the family cannot do it.
        """
        if not self.supports_gradient_checkpointing:
            raise BackboneError(
                f"A {self.spec.model_type!r} backbone cannot recompute its activations; leave activation checkpointing off, or "
                "make batches smaller and accumulate them."
            )
        self.plain_backbone.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)
        self.train(self.training)  # the mode of the layers depends on it where the family keeps evaluation mode

    def activation_checkpointing_disable(self) -> None:
        """Keep the backbone's activations again."""
        self.plain_backbone.activation_checkpointing_disable()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Do as `activation_checkpointing_enable` does, under its older name.

        Raises:
            BackboneError: If the layers of the family cannot do it.
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Do as `activation_checkpointing_disable` does, under its older name."""
        self.activation_checkpointing_disable()
