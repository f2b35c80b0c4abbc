"""Samplers by name: which rules, with which numbers, and where the numbers come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
from prism_plugin.errors import ConfigurationError, UnknownKeyError, UnknownNameError
from prism_plugin.registry import did_you_mean

# Settings that every preset takes and the sampler's constructor reads; see `SamplerSettings`.
_COMMON = ("temperature", "top_p", "block_length", "eos_token_id")
# Settings of the schedule, and the cap per position: for presets that remask. `draft_share` makes it a LoopSchedule.
_REMASKING = ("num_remask", "remask_from", "remask_until", "draft_share", "max_remasks_per_position")
# More than any canvas holds: the schedule's own limit, what the rest of the steps can refill, is then the only one.
_UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class Preset:
    """A named sampler.

    Attributes:
        unmasking: "random", "confidence", "threshold" or "redraft".
        remasking: "never", "quality", "remdm_conf" or "redraft".
        source: Where the defaults come from.
        defaults: Settings that are not the rules' or the sampler's own default.
        own_settings: Settings that it takes beyond those of all presets.
    """

    unmasking: str
    remasking: str
    source: str
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    own_settings: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of all settings that it takes."""
        return (*_COMMON, *self.own_settings)


def _frozen(**settings: Any) -> Mapping[str, Any]:
    return MappingProxyType(settings)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "random": Preset(
            unmasking="random",
            remasking="never",
            source="Ancestral sampling of a masked diffusion model (MDLM, arXiv 2406.07524), where PRISM's experiments start.",
            defaults=_frozen(temperature=1.0),
        ),
        "remdm-conf": Preset(
            unmasking="random",
            remasking="remdm_conf",
            source="ReMDM-conf, arXiv 2503.00307 section 4.1, which has neither a scale nor a cap per step.",
            defaults=_frozen(temperature=1.0, num_remask=_UNLIMITED),
            own_settings=(*_REMASKING, "scale"),
        ),
        "prism": Preset(
            unmasking="random",
            remasking="quality",
            source="PRISM, arXiv 2510.01384; 4 remasks a step as in the authors' Sudoku sampling.",
            defaults=_frozen(temperature=1.0, num_remask=4),
            own_settings=(*_REMASKING, "quality_threshold"),
        ),
        "confidence": Preset(
            unmasking="confidence",
            remasking="never",
            source='LLaDA\'s "low_confidence" order with argmax tokens, arXiv 2502.09992.',
        ),
        "threshold": Preset(
            unmasking="threshold",
            remasking="never",
            source="Fast-dLLM, arXiv 2505.22618; its threshold.",
            defaults=_frozen(threshold=0.9),
            own_settings=("threshold",),
        ),
        "prism-confidence": Preset(
            unmasking="confidence",
            remasking="quality",
            source="PRISM's rule on top of `confidence`; the number of remasks is ours.",
            defaults=_frozen(num_remask=1),
            own_settings=(*_REMASKING, "quality_threshold"),
        ),
        "prism-threshold": Preset(
            unmasking="threshold",
            remasking="quality",
            source="PRISM's rule on top of `threshold`: looks that confident filling saves go to correction.",
            defaults=_frozen(threshold=0.9, num_remask=1),
            own_settings=(*_REMASKING, "quality_threshold", "threshold"),
        ),
        "prism-refine": Preset(
            unmasking="confidence",
            remasking="quality",
            source="`confidence`, then iterative partial refinement (arXiv 2605.19317) of what the head doubts; numbers ours.",
            defaults=_frozen(num_rounds=2, num_remask=32, quality_threshold=0.9),
            own_settings=("num_rounds", "num_remask", "quality_threshold", "max_remasks_per_position"),
        ),
        "redraft": Preset(
            unmasking="redraft",
            remasking="redraft",
            source="Ours: a draft by `threshold`, and another from nothing, at another pace, as long as the model doubts it.",
            defaults=_frozen(threshold=0.9, visible_threshold=0.5),
            own_settings=("threshold", "visible_threshold", "paces", "min_steps", "max_remasks_per_position"),
        ),
        "prism-redraft": Preset(
            unmasking="redraft",
            remasking="redraft",
            source="Ours: `redraft`, where the quality head doubts in place of the language model.",
            defaults=_frozen(threshold=0.9, quality_threshold=0.9),
            own_settings=("threshold", "quality_threshold", "paces", "min_steps", "max_remasks_per_position"),
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
        settings: What differs from the preset's defaults.

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
    chosen = {**preset.defaults, **settings}
    arguments = {key: chosen[key] for key in (*_COMMON, "max_remasks_per_position") if key in chosen}
    unmasking = _unmasking(preset, chosen)
    if isinstance(unmasking, RedraftUnmasking) and not chosen.get("temperature"):
        # without chance, a draft at a pace that was tried already would be the same draft
        arguments.setdefault("max_remasks_per_position", len(unmasking.paces))
    return arguments | {
        "unmasking": unmasking,
        "remasking": _remasking(preset, chosen),
        "schedule": _schedule(preset, chosen),
    }


def _unmasking(preset: Preset, chosen: Mapping[str, Any]) -> UnmaskingRule:
    if preset.unmasking == "threshold":
        return ThresholdUnmasking(chosen["threshold"])
    if preset.unmasking == "redraft":
        return RedraftUnmasking(**_given(chosen, "threshold", "paces"))
    return RandomUnmasking() if preset.unmasking == "random" else ConfidenceUnmasking()


def _remasking(preset: Preset, chosen: Mapping[str, Any]) -> RemaskingRule:
    if preset.remasking == "never":
        return NeverRemasking()
    if preset.remasking == "remdm_conf":
        return RemdmConfRemasking(**_given(chosen, "scale"))
    if preset.remasking == "redraft":
        if "visible_threshold" in chosen:
            return RedraftRemasking(chosen["visible_threshold"], score="visible_confidence")
        return RedraftRemasking(chosen["quality_threshold"])
    if chosen.get("quality_threshold") is not None:
        return QualityThresholdRemasking(chosen["quality_threshold"])
    return QualityRemasking()


def _schedule(preset: Preset, chosen: Mapping[str, Any]) -> Schedule:
    if preset.remasking == "redraft":
        return RedraftSchedule(**_given(chosen, "min_steps"))
    if "num_rounds" in chosen:
        return RefineSchedule(**_given(chosen, "num_remask", "num_rounds"))
    if chosen.get("draft_share") is None:
        return EvenSchedule(**_given(chosen, "num_remask", "remask_from", "remask_until"))
    ignored = sorted({"remask_from", "remask_until"} & set(chosen))
    if ignored:
        raise ConfigurationError(
            f"{' and '.join(f'`{name}`' for name in ignored)} would be ignored with `draft_share`, after which every look may "
            "remask; give one or the other."
        )
    return LoopSchedule(**_given(chosen, "num_remask", "draft_share"))


def _given(chosen: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: chosen[name] for name in names if name in chosen}
