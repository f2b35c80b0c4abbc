"""Every objective with a name, for tests that take them through all that an objective goes through."""

from prism_plugin.training.presets import PRESETS

METHODS = {name: objective for name, objective in PRESETS.items() if name not in ("prism", "prism_recorded")}
FROZEN = {name for name, objective in METHODS.items() if all(term.reads_quality for term in objective.terms)}
