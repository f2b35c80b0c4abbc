"""What a preset is: a sampler as a value, and what people may change in it."""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prism_plugin.core.editing import EditingRule
from prism_plugin.core.remasking import NeverRemasking, RemaskingRule
from prism_plugin.core.schedules import EvenSchedule, Schedule
from prism_plugin.core.unmasking import ConfidenceUnmasking, RedraftUnmasking, UnmaskingRule
from prism_plugin.core.view import Decider
from prism_plugin.decoding.looks import LOOKS, Look
from prism_plugin.decoding.policy import PolicyUnmasking
from prism_plugin.errors import ConfigurationError
from prism_plugin.reader import from_mapping
from prism_plugin.registry import Registry
from prism_plugin.sampling.particles import TRAJECTORIES, Trajectory

# What a preset is made of.
PARTS = ("unmasking", "remasking", "schedule", "editing", "decider", "look", "trajectory")
# Settings that go with remasking and editing, and those that every preset takes; see `SamplerSettings`.
SAFETY = ("max_remasks_per_position", "max_change_share", "tabu_length")
COMMON = ("temperature", "top_p", "block_length", "eos_token_id", "suppress_tokens")


@dataclass(frozen=True)
class Change:
    """What a setting of a preset changes.

    Attributes:
        part: One of `PARTS`.
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
        editing: Which tokens to overwrite; None: none.
        decider: Ranks masks and tokens together, in place of the rules; None: the rules decide.
        look: How the network is asked; None: by one plain forward, or what the setting `look` says.
        trajectory: Several runs, of which one is kept; None: one run, or what the setting `trajectory` says.
        safety: Settings of `SamplerSettings` about what is spared, and their numbers.
    """

    source: str
    unmasking: UnmaskingRule = field(default_factory=ConfidenceUnmasking)
    remasking: RemaskingRule = field(default_factory=NeverRemasking)
    schedule: Schedule = field(default_factory=EvenSchedule)
    temperature: float = 0.0
    takes: Mapping[str, Change] = field(default_factory=lambda: MappingProxyType({}))
    editing: EditingRule | None = None
    decider: Decider | None = None
    look: Look | None = None
    trajectory: Trajectory | None = None
    safety: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of all settings that it takes."""
        changes = not isinstance(self.remasking, NeverRemasking) or self.editing is not None or self.decider is not None
        rules = () if isinstance(self.remasking, NeverRemasking) else ("remask_neighbours",)
        looks = ("look",) if self.look is None else ()
        runs = ("trajectory",) if self.trajectory is None else ()
        order = ("policy",) if self.decider is None and not isinstance(self.unmasking, RedraftUnmasking) else ()
        return (*COMMON, *self.takes, *(SAFETY if changes else ()), *rules, *order, *looks, *runs)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The numbers that are not the rules' or the sampler's own default, by setting."""
        found: dict[str, Any] = {"temperature": self.temperature} if self.temperature else {}
        found |= self.safety
        for name, change in self.takes.items():
            rule = getattr(self, change.part)
            if rule is None:
                continue
            own = next((one for one in fields(rule) if one.name == change.field), None)
            if own is not None and change.instead in (None, type(rule)):
                value, standard = getattr(rule, change.field), own.default
                if standard is MISSING or value != standard:
                    found[name] = value
        return MappingProxyType(found)


def takes(**changes: Change) -> Mapping[str, Change]:
    """What a preset takes, by the names of its settings."""
    return MappingProxyType(changes)


def look_of(given: Any) -> Look:
    """A look by its name, by its name and settings, or as it is."""
    return _named("look", LOOKS, given)


def trajectory_of(given: Any) -> Trajectory:
    """A trajectory by its name, by its name and settings, or as it is."""
    return _named("trajectory", TRAJECTORIES, given)


def _named(setting: str, registry: Registry[Any], given: Any) -> Any:
    if isinstance(given, str):
        given = {"name": given}
    return registry.from_dict(given, source=f"`{setting}`") if isinstance(given, Mapping) else given


def policy_of(given: Any, others: Collection[str]) -> PolicyUnmasking:
    """A policy by its file, by its file and settings, or as it is.

    Args:
        given: What the caller gave.
        others: Settings of the unmasking rule, which the policy takes the place of, that the caller gave besides.

    Raises:
        ConfigurationError: If there are such, or the file is none.
    """
    if others:
        raise ConfigurationError(
            f"{' and '.join(f'`{name}`' for name in sorted(others))} would be ignored with `policy`, which takes the place of "
            "the unmasking rule; give one or the other."
        )
    if isinstance(given, str | Path):
        given = {"file": str(given)}
    return from_mapping(PolicyUnmasking, given, source="`policy`") if isinstance(given, Mapping) else given
