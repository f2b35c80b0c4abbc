"""Views for the tests of rules: features among the other fields, and all of a view changed alike."""

from dataclasses import fields

from prism_plugin.core.view import StepView

FEATURES = frozenset({
    "noise", "entropy", "margin", "quality", "visible_confidence", "best_visible", "best_visible_confidence", "mean_quality",
    "mean_confidence", "previous_confidence", "shadow_confidence", "looks_since", "kl_of_two", "corrected", "mask_quality",
    "running_confidence", "context_confidence",
})  # fmt: skip


def step_view(**given):
    """A view, from its fields and features; what stands there are the candidates where nothing else is said."""
    own = {name: value for name, value in given.items() if name not in FEATURES}
    features = {name: value for name, value in given.items() if name in FEATURES}
    return StepView(**{"tokens": own["candidates"], **own}, features=features)


def tensors_of(view):
    """Every tensor of a view, by its name."""
    plain = {field.name: getattr(view, field.name) for field in fields(view) if field.name not in ("features", "active")}
    return plain | dict(view.features)


def changed(view, change=lambda tensor: tensor, **given):
    """A view with every tensor changed alike, and some given anew."""
    return step_view(**{**{name: change(tensor) for name, tensor in tensors_of(view).items()}, **given})
