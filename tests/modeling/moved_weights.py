"""Stands in for training where only its effect matters: other weights."""

import torch

from prism_plugin.modeling import PrismModel


def trained(model: PrismModel) -> PrismModel:
    """Give everything trainable other values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model
