"""What defines a sampler: checked when it is made, and written as plain values; `settings_files` has them on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from prism_plugin.core.detectors import BelowRemasking
from prism_plugin.core.editing import EDITING, EditingRule
from prism_plugin.core.joint import DECIDERS
from prism_plugin.core.remasking import REMASKING, NeverRemasking, RemaskingRule
from prism_plugin.core.remdm import RemdmCapRemasking
from prism_plugin.core.schedules import SCHEDULES, EvenSchedule, RedraftSchedule, Schedule
from prism_plugin.core.unmasking import UNMASKING, ConfidenceUnmasking, RedraftUnmasking, UnmaskingRule
from prism_plugin.core.validation import require_ints, require_number
from prism_plugin.core.view import Decider
from prism_plugin.decoding.cached import CachedLook
from prism_plugin.decoding.corrected import CorrectedLook
from prism_plugin.decoding.decide import Separate, name_of, needs_of, revises
from prism_plugin.decoding.features import get_features
from prism_plugin.decoding.guided import GuidedLook
from prism_plugin.decoding.left_out import LeftOutLook
from prism_plugin.decoding.looks import LOOKS, Look, PlainLook
from prism_plugin.decoding.policy import PolicyUnmasking
from prism_plugin.decoding.refined import RefinedLook
from prism_plugin.decoding.safety import Safety
from prism_plugin.decoding.shadow import ShadowLook
from prism_plugin.decoding.soft_look import SoftLook
from prism_plugin.errors import ConfigurationError, UnknownNameError
from prism_plugin.reader import from_mapping, without_version
from prism_plugin.registry import Registry
from prism_plugin.sampling.particles import Trajectory
from prism_plugin.sampling.trajectories import TRAJECTORIES

# These modules register what they define; each is named here, so that an export takes it along.
_OF_OTHER_MODULES = (
    BelowRemasking,
    RemdmCapRemasking,
    CachedLook,
    CorrectedLook,
    GuidedLook,
    LeftOutLook,
    PolicyUnmasking,
    RefinedLook,
    ShadowLook,
    SoftLook,
)

SAMPLER_FORMAT_VERSION = 1

# Settings that are rules, each by the registry that names them in files.
PLUG_INS: dict[str, Registry[Any]] = {
    "unmasking": UNMASKING, "remasking": REMASKING, "schedule": SCHEDULES, "editing": EDITING, "decider": DECIDERS,
    "look": LOOKS, "trajectory": TRAJECTORIES,
}  # fmt: skip
# Written only where they are set.
_OPTIONAL = (
    "editing", "decider", "look", "suppress_tokens", "max_change_share", "tabu_length", "remask_neighbours", "trajectory",
)  # fmt: skip

_READERS = {
    "shadow": "such as `WinoDecider()`",
    "corrected": "`editing=CorrectedEditing()`",
    "refined": "`decider=RefinedDecider()`",
    "left_out": 'such as `BelowRemasking(0.5, "context_confidence")`',
}
_LOOK_OF = {
    "shadow": "ShadowLook()",
    "corrected": "CorrectedLook()",
    "left_out": "LeftOutLook()",
    "refined": "RefinedLook(refiner)",
}
_OF_A_DECIDER = ("needs", "reach", "blind", "repeats", "takes_back")
_DEFAULTS = (ConfidenceUnmasking(), NeverRemasking(), None)


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The rules of a sampler and how it uses them, without a model.

    Attributes:
        num_steps: Denoising steps in total, over all blocks; no row gets more looks. >= 1.
        unmasking: Which masked positions to reveal.
        remasking: Which revealed positions to mask again.
        schedule: How many of either, at each step.
        temperature: 0 takes the most probable token, above 0 samples from the logits divided by it.
        top_p: Nucleus to sample from, in (0, 1]; 1 is the whole vocabulary. Needs a temperature above 0.
        block_length: Positions per semi-autoregressive block, >= 1; None generates everything at once, or block by block where
            the family attends by blocks, whose length it must divide.
        eos_token_id: When a closed block holds it, what follows is filled with padding; None never stops early.
        max_remasks_per_position: Times that one position may be masked again or overwritten, >= 1; None for no cap.
        max_change_share: Most of a block that may be masked again at a look, and as much that may be overwritten, in (0, 1],
            rounded down, but one position at least; None for no cap.
        tabu_length: Positions of a row, those last masked again or overwritten, that are left alone, >= 1; None for none.
        remask_neighbours: Positions on either side that go with one that is masked again, >= 1, as far as the schedule's
            grant reaches; None for none.
        suppress_tokens: Ids that are never drawn, beside the mask token; None: no others.
        editing: Which revealed tokens to overwrite by another; None: none.
        decider: Ranks masks and tokens together, in place of the three rules; None: the rules decide, one after another.
        look: How the network is asked, such as `GuidedLook(2.0)`; None: by one plain forward.
        trajectory: Several runs of each row, of which one is kept, such as `BestOfN(4)`; None: one run.
    """

    num_steps: int
    unmasking: UnmaskingRule = field(default_factory=ConfidenceUnmasking)
    remasking: RemaskingRule = field(default_factory=NeverRemasking)
    schedule: Schedule = field(default_factory=EvenSchedule)
    temperature: float = 0.0
    top_p: float = 1.0
    block_length: int | None = None
    eos_token_id: int | None = None
    max_remasks_per_position: int | None = None
    suppress_tokens: tuple[int, ...] | None = None
    editing: EditingRule | None = None
    decider: Decider | None = None
    look: Look | None = None
    max_change_share: float | None = None
    tabu_length: int | None = None
    remask_neighbours: int | None = None
    trajectory: Trajectory | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "block_length", "max_remasks_per_position", "tabu_length", "remask_neighbours"):
            _require_count(name, getattr(self, name), least=1, optional=name != "num_steps")
        _require_count("eos_token_id", self.eos_token_id, least=0, optional=True)
        require_number(self, "temperature", "a finite number of at least 0 (which takes the most probable token)", low=0)
        require_number(self, "top_p", "a number in (0, 1] (1 is the whole vocabulary)", low=0, high=1, open_low=True)
        if self.top_p < 1 and self.temperature == 0:
            raise ConfigurationError(
                f"`top_p` {self.top_p} would be ignored at temperature 0, which takes the most probable token; "
                "set `temperature` above 0 or `top_p` to 1."
            )
        if self.max_change_share is not None:
            require_number(self, "max_change_share", "a share in (0, 1]", low=0, high=1, open_low=True)
        if self.suppress_tokens is not None:
            object.__setattr__(self, "suppress_tokens", require_ints(self, "suppress_tokens", minimum=0))
            if self.eos_token_id in self.suppress_tokens:
                raise ConfigurationError(
                    f"`eos_token_id` {self.eos_token_id} would be ignored, since `suppress_tokens` holds it and it is never "
                    "drawn; leave one of them out."
                )
        self._check_plug_ins()

    @property
    def decide(self) -> Decider:
        """What decides at each look."""
        if self.decider is not None:
            return self.decider
        return Separate(self.unmasking, self.remasking, self.editing, self.remask_neighbours or 0)

    @property
    def safety(self) -> Safety:
        """What is spared of remasking and editing."""
        return Safety(self.max_remasks_per_position, self.max_change_share, self.tabu_length)

    @property
    def plug_ins(self) -> tuple[Any, ...]:
        """The rules, or the decider, that read a look."""
        rules = (self.unmasking, self.remasking, self.editing) if self.decider is None else (self.decider,)
        return tuple(rule for rule in rules if rule is not None)

    @property
    def reads(self) -> frozenset[str]:
        """What a look has to give for what decides, as `Feature.reads` names it: "quality" where the head is read.

        Raises:
            UnknownNameError: If a rule needs a feature that is not registered.
        """
        return _reads(self.decide)

    @property
    def reads_head(self) -> bool:
        """Whether the quality head is asked: by what decides, or to tell the runs of a trajectory apart."""
        return "quality" in self.reads or (self.trajectory is not None and self.trajectory.asks_head)

    @property
    def run_draws(self) -> bool:
        """Whether one run depends on random numbers: tokens are sampled, or what decides reads noise."""
        return self.temperature > 0 or "noise" in self.reads

    @property
    def draws(self) -> bool:
        """Whether an answer depends on random numbers: a run does, or what the trajectory does with runs."""
        return self.run_draws or (self.trajectory is not None and self.trajectory.draws)

    def _check_plug_ins(self) -> None:
        for name in PLUG_INS:
            if getattr(self, name) is None and name in _OPTIONAL:
                continue
            if not callable(getattr(self, name)) or isinstance(getattr(self, name), type):
                raise ConfigurationError(
                    f"`{name}` must be a rule to call, such as `ConfidenceUnmasking()`, got {getattr(self, name)!r}; "
                    "make an instance, or use `RemaskingSampler.from_preset(...)`."
                )
        if self.decider is not None:
            ignored = [one for one in (self.unmasking, self.remasking, self.editing) if one not in _DEFAULTS]
            if ignored:
                raise ConfigurationError(
                    f"{type(ignored[0]).__name__} would be ignored, since {type(self.decider).__name__} decides by itself; "
                    "give rules or `decider`."
                )
            missing = [name for name in _OF_A_DECIDER if not hasattr(self.decider, name)]
            if missing:
                raise ConfigurationError(
                    f"A decider says how it is to be asked, but {type(self.decider).__name__} lacks `{missing[0]}`; set it as "
                    "`prism_plugin.core.Decider` describes."
                )
        self._check_remasks()
        self._check_look()

    def _check_look(self) -> None:
        """Refuse what decides by what the look does not give, and a look that gives what nobody reads."""
        look = self.look or PlainLook()
        gives: frozenset[str] = getattr(look, "gives", frozenset())
        if getattr(look, "greedy", False) and self.temperature:
            raise ConfigurationError(
                f"{name_of(look)} judges the most probable tokens, so `temperature` must be 0, found {self.temperature}; leave "
                "it out, or choose another look."
            )
        for name in _LOOK_OF:
            readers = [rule for rule in self.plug_ins if name in _reads(rule)]
            if readers and name not in gives:
                raise ConfigurationError(
                    f"{name_of(readers[0])} reads what another look gives, but `look` is {name_of(look)}; give "
                    f"`look={_LOOK_OF[name]}`."
                )
            if name in gives and not readers:
                raise ConfigurationError(
                    f"`look` is {name_of(look)}, but nothing reads what it gives besides, so it would cost for nothing; "
                    f"choose what reads it, {_READERS[name]}, or leave it out."
                )

    def _check_remasks(self) -> None:
        """Refuse remasks that are granted to nobody, and whoever takes tokens back where none may be."""
        never = not self.decide.takes_back
        changes = not never or revises(self.decide)
        for setting in ("max_remasks_per_position", "max_change_share", "tabu_length"):
            if getattr(self, setting) is not None and not changes:
                raise ConfigurationError(
                    f"`{setting}` {getattr(self, setting)} would be ignored with {type(self.remasking).__name__}, which takes "
                    "nothing back, and no editing rule; leave it out."
                )
        if self.remask_neighbours is not None and (never or self.decider is not None):
            raise ConfigurationError(
                f"`remask_neighbours` {self.remask_neighbours} would be ignored, since no remasking rule takes tokens back; "
                "choose one, or leave it out."
            )
        name = "remasking" if self.decider is None else "decider"
        title = type(getattr(self, name)).__name__
        granted = getattr(self.schedule, "num_remask", max(getattr(self.schedule, "caps", ()), default=None))
        if not never and granted == 0:
            otherwise = "use `NeverRemasking()`" if self.decider is None else "leave the decider out"
            raise ConfigurationError(
                f"`{name}` is {title}, but the schedule grants no remasks (`num_remask` 0), so it would never take a token "
                f"back; give the schedule a `num_remask` of at least 1, or {otherwise}."
            )
        if never and granted:
            raise ConfigurationError(
                f"the schedule grants {granted} remasks a step, but `{name}` is {title}, which takes nothing back, so they "
                "would be ignored; choose a remasking rule, or set `num_remask` to 0."
            )
        redrafts = [one for one in (self.schedule, self.unmasking) if isinstance(one, RedraftSchedule | RedraftUnmasking)]
        if never and redrafts:
            raise ConfigurationError(
                f"{type(redrafts[0]).__name__} is for drafts that are taken back, but `{name}` is {title}; choose a "
                "remasking rule, such as RedraftRemasking, or another schedule and unmasking rule."
            )

    def to_dict(self) -> dict[str, Any]:
        """Write the settings as plain values, as `sampler_config.json` holds them.

        Raises:
            UnknownNameError: If a rule is not registered; a lambda works in `sample`, but has no name to save.
        """
        values: dict[str, Any] = {"format_version": SAMPLER_FORMAT_VERSION}
        for setting in fields(SamplerSettings):
            value = getattr(self, setting.name)
            if value is None and setting.name in _OPTIONAL:
                continue
            values[setting.name] = _named(setting.name, value) if setting.name in PLUG_INS else value
        return values


def settings_from_dict(values: Mapping[str, Any], *, source: str = "sampler settings") -> SamplerSettings:
    """Read settings back, refusing whatever would be ignored.

    Args:
        values: What `to_dict` gave.
        source: Where the values come from, named in errors.

    Raises:
        UnknownKeyError: If a key is not a setting.
        UnknownNameError: If a rule of that name is not registered.
        StoredStateError: If the format is another one.
        ConfigurationError: If a setting is missing or out of range.
    """
    values = without_version(values, SAMPLER_FORMAT_VERSION, source=source)
    for name, registry in PLUG_INS.items():
        if values.get(name) is not None:
            values[name] = registry.from_dict(values[name], source=f"{source}, `{name}`")
    return from_mapping(SamplerSettings, values, source=source)


def _named(setting: str, plug_in: Any) -> dict[str, Any]:
    """A rule by its name and settings."""
    values = PLUG_INS[setting].to_dict(plug_in)
    own = next((name for name, value in values.items() if callable(value)), None)
    if own is not None:
        raise UnknownNameError(
            f"`{own}` of {type(plug_in).__name__} is a function of your own, which works in `sample`, but no file can hold; "
            "save a sampler with one of the named choices, and give the function where you load it."
        )
    return values


def _reads(rule: Any) -> frozenset[str]:
    features = get_features(needs_of(rule), name_of(rule))
    return frozenset().union(*(feature.reads for feature in features.values()))


def _require_count(name: str, value: Any, *, least: int, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"`{name}` must be an integer of at least {least}{' or None' * optional}, got {value!r}.")
