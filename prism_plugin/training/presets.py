"""Objectives by name: each a value, with the settings that a recipe may change in it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from prism_plugin.core.drafting import DraftRule
from prism_plugin.core.terms import TERMS, DiffusionTerm, QualityTerm, RepairTerm, Term
from prism_plugin.errors import ConfigurationError, UnknownNameError, did_you_mean
from prism_plugin.reader import changed, naming, refuse_unknown
from prism_plugin.registry import require_name
from prism_plugin.training.corruptors import CORRUPTORS, Corruptor, Fill, RandomTokens, Recorded
from prism_plugin.training.objective import Objective
from prism_plugin.training.own_tokens import LookBack, PredictAll, Remask
from prism_plugin.training.soft_masks import SoftMasks

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

_ALL_AT_ONCE = DraftRule(num_drafted=None, share=(1.0, 1.0))
_ROLLED_OUT = DraftRule(num_drafted=None, share=(0.0, 1.0), num_looks=3)

# Fill all masks at once, and ask the head which of the tokens are right (Token-Critic, arXiv 2209.04439).
register_objective("token_critic", Objective(Fill((_ALL_AT_ONCE,)), (DiffusionTerm(), QualityTerm())))
# The same as a planner for a frozen model, weighted as its likelihood bound is (P2, arXiv 2502.03540).
register_objective("p2_planner", Objective(Fill((_ALL_AT_ONCE,)), (QualityTerm(where="visible", by_time=True),)))
# Detect and repair in one second look, at drafts that the model rolls out as its sampler does (ours).
register_objective(
    "joint", Objective(Fill((_ROLLED_OUT,)), (DiffusionTerm(), QualityTerm(where="visible"), RepairTerm(weight=0.5)))
)
# Predict everything from the model's own predictions (ProSeCo, arXiv 2602.11590).
register_objective("proseco", Objective(PredictAll(), (DiffusionTerm(weight=1.0), RepairTerm(where="all", by_time=True))))
# Judge tokens that were written with little context where there is more of it (BackPlay, arXiv 2601.06428).
register_objective("backplay", Objective(LookBack(), (QualityTerm(where="visible"),)))
# Random wrong tokens, and one head that ranks tokens and masks (RemeDi, arXiv 2509.23653).
register_objective(
    "remedi",
    Objective(
        RandomTokens(rate=None, mid_rate=0.1), (DiffusionTerm(weight=1.0, on="draft"), QualityTerm(weight=0.3, where="all"))
    ),
)
# Predict everything from the model's own predictions, some of them masked again (SMART, arXiv 2001.08785).
register_objective("smart", Objective(Remask(), (RepairTerm(where="all"),)))
# Predict everything where some tokens are masked and some are random (CDLM, arXiv 2512.15596).
register_objective("cdlm", Objective(RandomTokens(), (RepairTerm(where="all"),)))
# The same as two losses: mask to token, and token to token (LLaDA2.1).
register_objective("t2t", Objective(RandomTokens(), (DiffusionTerm(weight=1.0, on="draft"), RepairTerm())))
# Repair the model's own errors in drafts that it rolls out (SCOPE, arXiv 2606.01026).
register_objective("scope", Objective(Fill((_ROLLED_OUT,)), (DiffusionTerm(weight=1.0), RepairTerm(where="wrong"))))
# Predict everything from the model's own draft, its surest token at every mask (DMax, arXiv 2604.08302).
register_objective(
    "dmax",
    Objective(
        Fill((replace(_ALL_AT_ONCE, tokens="argmax"),), t_min=0.75, t_max=0.75),
        (DiffusionTerm(weight=1.0), RepairTerm(where="all")),
    ),
)
# Read masks that say a little of what the model would write there (Soft-Masked Diffusion, arXiv 2510.17206).
register_objective("soft_masked", Objective(SoftMasks(), (DiffusionTerm(weight=1.0, on="draft"),)))


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
        _refuse_idle_settings(terms[-1], term, source)
    with naming(source):
        return replace(preset, corruptor=corruptor, terms=tuple(terms))


def _refuse_idle_settings(term: Term, preset: Term, source: str) -> None:
    """Refuse settings of a term that has weight 0, which would change nothing."""
    changed_ones = [field.name for field in _settable(term) if getattr(term, field.name) != getattr(preset, field.name)]
    idle = [f"`{term.name}_{name}`" for name in changed_ones if name != "weight"]
    if idle and not term.weight:
        raise ConfigurationError(
            f"{source}: `{term.name}_weight` is 0, so {', '.join(idle)} would change nothing; leave out what is not read, or "
            "give the term a weight."
        )


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
