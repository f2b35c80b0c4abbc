"""Objectives by name: each a value, with the settings that a recipe may change in it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from prism_plugin.core.drafting import DraftRule
from prism_plugin.core.terms import TERMS, DiffusionTerm, QualityTerm, Term
from prism_plugin.errors import ConfigurationError, UnknownNameError, did_you_mean
from prism_plugin.reader import changed, naming, refuse_unknown
from prism_plugin.registry import require_name
from prism_plugin.training.corruptors import CORRUPTORS, Corruptor, Fill, Recorded
from prism_plugin.training.objective import Objective

PRESETS: dict[str, Objective] = {}

_PARTS = ("corruptor", "terms")  # of an objective that is written by its parts
_DRAFT_FIELDS = tuple(field.name for field in fields(DraftRule) if field.name != "weight")


def register_objective(name: str, objective: Objective) -> Objective:
    """Give an objective a name, which must never change its meaning afterwards: files hold it.

    Args:
        name: Lower-case letters, digits and _.
        objective: A value whose corruptor and terms are registered.

    Returns:
        The objective, with its name.

    Raises:
        ConfigurationError: If the name is taken or malformed.
    """
    require_name("objective", name, PRESETS)
    PRESETS[name] = replace(objective, name=name)
    return PRESETS[name]


# Fill some masks, ask the head which of the filled tokens are right (PRISM, arXiv 2510.01384).
register_objective("prism", Objective(Fill(), (DiffusionTerm(), QualityTerm())))
# The same on a sampler's own canvases: the minimiser is p(clean = token | canvas) under the distribution that was recorded.
register_objective("prism_recorded", Objective(Recorded(), (DiffusionTerm(), QualityTerm(where="visible"))))


def settings_of(objective: Objective) -> dict[str, str]:
    """What a recipe may set of a preset: each key, and what it sets.

    The corruptor's fields stand as they are, and where it has `drafts` those of a single `DraftRule`; a term's field `weight`
    is `<term>_weight`.
    """
    own = {field.name: f"of the corruptor {type(objective.corruptor).__name__}" for field in _settable(objective.corruptor)}
    short = dict.fromkeys(_DRAFT_FIELDS, "of the only draft rule") if "drafts" in own else {}
    of_terms = {
        f"{term.name}_{field.name}": f"`{field.name}` of the term {term.name}"
        for term in objective.terms
        for field in _settable(term)
    }
    return {**short, **own, **of_terms}


def get_objective(name: str | None = None, *, source: str = "objective", **settings: Any) -> Objective:
    """Build an objective by name, or by its parts.

    Settings of a `DraftRule` may be given beside the objective's own, and then make its only rule:
    `get_objective("prism", num_drafted=4, positions="confidence", diffusion_weight=5.0)`. `drafts` may be mappings.

    By parts, for what has no name: `get_objective(corruptor={"name": "fill"}, terms=[{"name": "quality", "weight": 1.0}])`.

    Args:
        name: A key of `PRESETS`; None: `corruptor` and `terms` say it.
        source: Where the settings were read, for error messages.
        settings: What differs from the preset, by the keys of `settings_of`.

    Raises:
        UnknownNameError: If no objective, corruptor or term has that name.
        UnknownKeyError: If a setting is unknown.
        ConfigurationError: If a value is out of range, or a rule is given both ways.
    """
    if name is None:
        return _from_parts(settings, source)
    if not isinstance(name, str) or name not in PRESETS:
        listed = ", ".join(sorted(PRESETS))
        near = did_you_mean(str(name), PRESETS)
        raise UnknownNameError(f"{source}: No objective is called {name!r}{near}; known: {listed}.")
    preset = PRESETS[name]
    refuse_unknown(settings, settings_of(preset), source=f"{source} {name!r}")
    corruptor = changed(preset.corruptor, _of_corruptor(preset.corruptor, settings, source), source=source)
    terms = []
    for term in preset.terms:
        keys = {f"{term.name}_{field.name}": field.name for field in _settable(term)}
        given = {key: value for key, value in settings.items() if key in keys}
        own = {keys[key]: value for key, value in given.items()}
        terms.append(changed(term, own, source=f"{source}: {', '.join(given)}"))
    with naming(source):
        return replace(preset, corruptor=corruptor, terms=tuple(terms))


def as_objective(given: Any) -> Objective:
    """Make an objective of a name, or of a mapping such as a recipe has; None is PRISM's.

    Raises:
        UnknownNameError: If nothing has that name.
        UnknownKeyError: If a setting is unknown.
        ConfigurationError: If it is something else, or a value is out of range.
    """
    if isinstance(given, Objective):
        return given
    if given is None or isinstance(given, str):
        return get_objective(given or "prism")
    if isinstance(given, Mapping):
        return get_objective(**given)
    raise ConfigurationError(
        f"`objective` must be an Objective, its name, or a mapping of its settings, found {type(given).__name__}; make one by "
        '`get_objective("prism", ...)`.'
    )


def objective_to_dict(objective: Objective) -> dict[str, Any]:
    """Write an objective as what `get_objective` takes, ready for JSON; every setting is named.

    Raises:
        UnknownNameError: If it has no name of its own, and its corruptor or a term is not registered.
    """
    flat = {field.name: getattr(objective.corruptor, field.name) for field in _settable(objective.corruptor)}
    for term in objective.terms:
        flat |= {f"{term.name}_{field.name}": getattr(term, field.name) for field in _settable(term)}
    if objective.name in PRESETS and _same_parts(objective, PRESETS[objective.name]):
        return {"name": objective.name, **_plain(flat)}
    corruptor = _plain(CORRUPTORS.to_dict(objective.corruptor))
    return {"corruptor": corruptor, "terms": [TERMS.to_dict(term) for term in objective.terms]}


def _same_parts(objective: Objective, preset: Objective) -> bool:
    def parts(one: Objective) -> list[type]:
        return [type(one.corruptor), *map(type, one.terms)]

    return parts(objective) == parts(preset)


def _from_parts(settings: Mapping[str, Any], source: str) -> Objective:
    unknown = sorted(set(settings) - set(_PARTS))
    if unknown or set(settings) != set(_PARTS):
        raise ConfigurationError(
            f"{source}: an objective has a `name` and settings, or a `corruptor` and `terms`, found {', '.join(settings)}."
        )
    terms, corruptor = settings["terms"], settings["corruptor"]
    if not isinstance(terms, list | tuple):
        raise ConfigurationError(f"{source}: `terms` is a list of mappings with a 'name' each, found {terms!r}.")
    if isinstance(corruptor, Mapping) and "name" in corruptor:
        with naming(f"{source}: corruptor"):
            cls = CORRUPTORS.get(corruptor["name"])
        given = {key: value for key, value in corruptor.items() if key != "name"}
        short = "drafts" in {field.name for field in fields(cls)}
        corruptor = {"name": corruptor["name"], **(_with_rules(given, source) if short else given)}
    return Objective(
        CORRUPTORS.from_dict(corruptor, source=f"{source}: corruptor"),
        tuple(TERMS.from_dict(term, source=f"{source}: terms") for term in terms),
    )


def _settable(part: Corruptor | Term) -> tuple[Any, ...]:
    return tuple(field for field in fields(part) if field.init)


def _of_corruptor(corruptor: Corruptor, settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    own = {field.name for field in _settable(corruptor)}
    mine = {key: value for key, value in settings.items() if key in own or ("drafts" in own and key in _DRAFT_FIELDS)}
    return _with_rules(mine, source) if "drafts" in own else mine


def _with_rules(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of a corruptor that drafts, with the settings of a rule of its own put into `drafts`."""
    short = {key: value for key, value in settings.items() if key in _DRAFT_FIELDS}
    settings = {key: value for key, value in settings.items() if key not in short}
    if short and "drafts" in settings:
        raise ConfigurationError(f"{source}: give `drafts` or the settings of one ({', '.join(sorted(short))}), not both.")
    rules = [short] if short else settings.get("drafts")
    if isinstance(rules, list | tuple):
        settings["drafts"] = [_without_number(one) for one in rules]
    return settings


def _without_number(rule: Any) -> Any:
    """A draft rule that gives a share fills no fixed number of positions."""
    return {"num_drafted": None, **rule} if isinstance(rule, Mapping) and rule.get("share") is not None else rule


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them."""
    if "drafts" not in settings:
        return dict(settings)
    rules: Iterable[dict[str, Any]] = (asdict(rule) for rule in settings["drafts"])
    return {**settings, "drafts": [{**rule, "share": rule["share"] and list(rule["share"])} for rule in rules]}
