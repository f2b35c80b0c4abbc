"""The README.md of a saved quality head: what it is, how to load it, and the figures that were measured."""

from collections.abc import Mapping

from jinja2 import Environment, StrictUndefined

from prism_plugin.modeling.config import PrismConfig

Figure = int | float | str

_TEMPLATE = """\
---
library_name: {{ "peft" if has_adapter else "prism-plugin" }}
{% if config.backbone_name and not config.backbone_name.startswith(".") -%}
base_model: {{ config.backbone_name }}
{% endif -%}
tags:
- prism
- masked-diffusion
---

# PRISM quality head for {{ backbone_title }}

A per-token quality head ([PRISM](https://arxiv.org/abs/2510.01384)) on a masked diffusion language model: it gives every
token the probability that it is right, which remasking samplers use to take tokens back.

| | |
| --- | --- |
| backbone | {{ backbone_title }}{% if config.backbone_revision %}, revision `{{ config.backbone_revision }}`{% endif %} |
| model type | {{ config.backbone_model_type }} |
| mask token id | {{ config.mask_token_id }} |
| head | {{ config.head }} |
| trained | {{ "the backbone and the head" if config.train_backbone else "LoRA and the head" if has_adapter else "the head" }} |
{%- if config.objective %}
| objective | {{ config.objective.name }}; its settings are in prism_config.json |
{%- endif %}

```python
import prism_plugin as prism

model = prism.PrismModel.from_pretrained("path or id of this folder")
```

## Figures
{% if figures %}
| figure | measured |
| --- | --- |
{%- for name, value in figures.items() %}
| {{ name }} | {{ "%.4g" | format(value) if value is float else value }} |
{%- endfor %}
{% else %}
None were measured when this was saved.
{% endif %}"""


def render_model_card(config: PrismConfig, *, has_adapter: bool, figures: Mapping[str, Figure] | None = None) -> str:
    """Write the model card.

    Args:
        config: Settings as they are saved; a `backbone_name` that starts with "." is a folder.
        has_adapter: A PEFT adapter lies beside the head.
        figures: What was measured, by name; None or empty says so.
    """
    title = _title(config.backbone_name, config.backbone_model_type)
    environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return environment.from_string(_TEMPLATE).render(
        config=config, has_adapter=has_adapter, figures=dict(figures or {}), backbone_title=title
    )


def _title(name: str | None, model_type: str | None) -> str:
    if name is None:
        return f"a {model_type} model"
    if name == ".":
        return f"the {model_type} model in this folder"
    return f"the {model_type} model in `{name}`" if name.startswith(".") else name
