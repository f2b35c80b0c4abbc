"""The model: a backbone with a quality head, and how it is saved."""

from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.dropout import dropout_off
from prism_plugin.modeling.head import QualityHead
from prism_plugin.modeling.model import PrismModel, PrismModelOutput, attach_quality_head

__all__ = ["PrismConfig", "PrismModel", "PrismModelOutput", "QualityHead", "attach_quality_head", "dropout_off"]
