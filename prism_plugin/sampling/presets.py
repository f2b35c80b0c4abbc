"""Samplers by name, each a value: rules with their numbers, what people may change in them, and where the numbers come from."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from prism_plugin.core.remasking import (
    NeverRemasking,
    QualityRemasking,
    QualityThresholdRemasking,
    RedraftRemasking,
    RemaskingRule,
    RemdmConfRemasking,
)
from prism_plugin.core.schedules import EvenSchedule, LoopSchedule, RedraftSchedule, RefineSchedule, Schedule
from prism_plugin.core.unmasking import (
    ConfidenceUnmasking,
    RandomUnmasking,
    RedraftUnmasking,
    ThresholdUnmasking,
    UnmaskingRule,
)
from prism_plugin.errors import ConfigurationError, UnknownKeyError, UnknownNameError, did_you_mean

# Settings that every preset takes and the sampler's constructor reads; see `SamplerSettings`.
_COMMON = ("temperature", "top_p", "block_length", "eos_token_id", "suppress_tokens")
# More than any canvas holds: the schedule's own limit, what the rest of the steps can refill, is then the only one.
_UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class Change:
    """What a setting of a preset changes.

    Attributes:
        part: "unmasking", "remasking" or "schedule".
        field: Field of that rule.
        instead: Class that takes the rule's place, with the fields that both have; None: the rule stays.
    """

    part: str
    field: str
    instead: Any = None

    def made(self, rule: Any, value: Any) -> Any:
        """The rule with the setting."""
        if self.instead is None:
            return replace(rule, **{self.field: value})
        shared = {one.name for one in fields(rule)} & {one.name for one in fields(self.instead)} - {self.field}
        return self.instead(**{self.field: value}, **{name: getattr(rule, name) for name in shared})


@dataclass(frozen=True)
class Preset:
    """A named sampler.

    Attributes:
        source: Where the numbers come from.
        unmasking: Which masks to fill.
        remasking: Which tokens to take back.
        schedule: How many of either.
        temperature: Of the draw.
        takes: Settings that it takes beyond those of all presets, and what each changes.
    """

    source: str
    unmasking: UnmaskingRule = field(default_factory=ConfidenceUnmasking)
    remasking: RemaskingRule = field(default_factory=NeverRemasking)
    schedule: Schedule = field(default_factory=EvenSchedule)
    temperature: float = 0.0
    takes: Mapping[str, Change] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of all settings that it takes."""
        cap = () if isinstance(self.remasking, NeverRemasking) else ("max_remasks_per_position",)
        return (*_COMMON, *self.takes, *cap)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The numbers that are not the rules' or the sampler's own default, by setting."""
        found = {"temperature": self.temperature} if self.temperature else {}
        for name, change in self.takes.items():
            rule = getattr(self, change.part)
            own = next((one for one in fields(rule) if one.name == change.field), None)
            if own is not None and change.instead in (None, type(rule)):
                value, standard = getattr(rule, change.field), own.default
                if standard is MISSING or value != standard:
                    found[name] = value
        return MappingProxyType(found)


def _takes(**changes: Change) -> Mapping[str, Change]:
    return MappingProxyType(changes)


# Settings of an even schedule that remasks; `draft_share` makes it a LoopSchedule.
_REMASKING = {
    "num_remask": Change("schedule", "num_remask"),
    "remask_from": Change("schedule", "remask_from"),
    "remask_until": Change("schedule", "remask_until"),
    "draft_share": Change("schedule", "draft_share", LoopSchedule),
}
_THRESHOLD = Change("unmasking", "threshold")
_DOUBT = Change("remasking", "threshold", QualityThresholdRemasking)
_REDRAFT = {"threshold": _THRESHOLD, "paces": Change("unmasking", "paces"), "min_steps": Change("schedule", "min_steps")}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "random": Preset(
            "Ancestral sampling of a masked diffusion model (MDLM, arXiv 2406.07524), where PRISM's experiments start.",
            RandomUnmasking(),
            temperature=1.0,
        ),
        "remdm-conf": Preset(
            "ReMDM-conf, arXiv 2503.00307 section 4.1, which has neither a scale nor a cap per step.",
            RandomUnmasking(),
            RemdmConfRemasking(),
            EvenSchedule(_UNLIMITED),
            temperature=1.0,
            takes=_takes(**_REMASKING, scale=Change("remasking", "scale")),
        ),
        "prism": Preset(
            "PRISM, arXiv 2510.01384; 4 remasks a step, the number of the authors' Sudoku sampling. Theirs takes back all 4 or "
            "none, and none while no more than 4 tokens are written or left to write; this takes back what there is and what "
            "the rest of the steps can refill: 184 in 51 steps for 51 tokens, theirs 168.",
            RandomUnmasking(),
            QualityRemasking(),
            EvenSchedule(4),
            temperature=1.0,
            takes=_takes(**_REMASKING, quality_threshold=_DOUBT),
        ),
        "confidence": Preset('LLaDA\'s "low_confidence" order with argmax tokens, arXiv 2502.09992.'),
        "threshold": Preset(
            "Fast-dLLM, arXiv 2505.22618; its threshold.", ThresholdUnmasking(0.9), takes=_takes(threshold=_THRESHOLD)
        ),
        "prism-confidence": Preset(
            "PRISM's rule on top of `confidence`; the number of remasks is ours.",
            remasking=QualityRemasking(),
            schedule=EvenSchedule(1),
            takes=_takes(**_REMASKING, quality_threshold=_DOUBT),
        ),
        "prism-threshold": Preset(
            "PRISM's rule on top of `threshold`: looks that confident filling saves go to correction.",
            ThresholdUnmasking(0.9),
            QualityRemasking(),
            EvenSchedule(1),
            takes=_takes(**_REMASKING, quality_threshold=_DOUBT, threshold=_THRESHOLD),
        ),
        "prism-refine": Preset(
            "`confidence`, then iterative partial refinement (arXiv 2605.19317) of what the head doubts; numbers ours.",
            remasking=QualityThresholdRemasking(0.9),
            schedule=RefineSchedule(num_remask=32, num_rounds=2),
            takes=_takes(
                num_rounds=Change("schedule", "num_rounds"),
                num_remask=Change("schedule", "num_remask"),
                quality_threshold=Change("remasking", "threshold"),
            ),
        ),
        "redraft": Preset(
            "Ours: a draft by `threshold`, and another from nothing, at another pace, as long as the model doubts it.",
            RedraftUnmasking(0.9),
            RedraftRemasking(0.5, score="visible_confidence"),
            RedraftSchedule(),
            takes=_takes(**_REDRAFT, visible_threshold=Change("remasking", "threshold")),
        ),
        "prism-redraft": Preset(
            "Ours: `redraft`, where the quality head doubts in place of the language model.",
            RedraftUnmasking(0.9),
            RedraftRemasking(0.9),
            RedraftSchedule(),
            takes=_takes(**_REDRAFT, quality_threshold=Change("remasking", "threshold")),
        ),
    }
)


def get_preset(name: str) -> Preset:
    """Find a preset.

    Raises:
        UnknownNameError: If none has that name.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"No preset is called {name!r}{did_you_mean(str(name), PRESETS)}; known: {', '.join(PRESETS)}.")
    return PRESETS[name]


def preset_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a preset and the caller's settings into arguments of `RemaskingSampler`, all but `model` and `num_steps`.

    Args:
        name: A key of `PRESETS`.
        settings: What differs from the preset's defaults; None leaves one as it is.

    Raises:
        UnknownNameError: If no preset has that name.
        UnknownKeyError: If the preset has no such setting.
        ConfigurationError: If two settings cannot go together, or one is out of range.
    """
    preset = get_preset(name)
    unknown = sorted(set(settings) - set(preset.settings))
    if unknown:
        raise UnknownKeyError(
            f"The preset {name!r} has no {', '.join(map(repr, unknown))}; it takes {', '.join(preset.settings)}."
        )
    parts = {part: getattr(preset, part) for part in ("unmasking", "remasking", "schedule")}
    given = {key: value for key, value in settings.items() if key in preset.takes and value is not None}
    for key in sorted(given, key=lambda key: preset.takes[key].instead is not None):  # other classes take over what was set
        change = preset.takes[key]
        if change.instead is not None:
            _refuse_ignored(key, change, {one for one in given if preset.takes[one].part == change.part})
        parts[change.part] = change.made(parts[change.part], given[key])
    arguments = {key: settings[key] for key in (*_COMMON, "max_remasks_per_position") if key in settings}
    arguments.setdefault("temperature", preset.temperature)
    if isinstance(parts["unmasking"], RedraftUnmasking) and not arguments["temperature"]:
        # without chance, a draft at a pace that was tried already would be the same draft
        arguments.setdefault("max_remasks_per_position", len(parts["unmasking"].paces))
    return arguments | parts


def _refuse_ignored(key: str, change: Change, given: set[str]) -> None:
    ignored = sorted(given - {key} - {one.name for one in fields(change.instead)})
    if ignored:
        raise ConfigurationError(
            f"{' and '.join(f'`{name}`' for name in ignored)} would be ignored with `{key}`, which makes the {change.part} a "
            f"{change.instead.__name__}; give one or the other."
        )
