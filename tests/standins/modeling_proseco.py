"""The interface of ProSeCo: MDLM's, with a condition, and arguments that it passes on to where they are refused."""

from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_mdlm import ProsecoConfig
from .modeling_mdlm import DITBackbone


class Proseco(PreTrainedModel):
    """What transformers sees of it."""

    config_class = ProsecoConfig
    base_model_prefix = "proseco"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = DITBackbone(config)

    def forward(self, input_ids=None, timesteps=None, cond=None, output_hidden_states=None, return_dict=None, **kwargs):
        return_dict = self.config.return_dict if return_dict is None else return_dict
        logits, all_hidden_states = self.backbone(input_ids, timesteps, output_hidden_states, **kwargs)
        return MaskedLMOutput(logits=logits, hidden_states=all_hidden_states) if return_dict else logits
