"""The model: a backbone with a quality head, and how it is saved."""

from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.head import QualityHead
from prism_plugin.modeling.model import PrismModel, attach_quality_head
from prism_plugin.modeling.output import PrismModelOutput
from prism_plugin.modeling.scored import ScoredTokens

__all__ = ["PrismConfig", "PrismModel", "PrismModelOutput", "QualityHead", "ScoredTokens", "attach_quality_head"]
