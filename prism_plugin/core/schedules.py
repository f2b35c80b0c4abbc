"""How many positions to unmask and to remask at each step. Integers only, so that every row ends exactly full."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prism_plugin.core.validation import require_int, require_ints, require_number
from prism_plugin.core.view import Budget
from prism_plugin.errors import ConfigurationError
from prism_plugin.registry import Registry
from prism_plugin.types import PerRow


class Schedule(Protocol):
    """Grants, per row, a number of remasks and a target number of revealed positions."""

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        """Give the budget of a step.

        Args:
            step: Steps taken before this one; at or past `num_steps`, the target is `total` and nothing may be remasked.
            num_steps: Steps in all.
            total: Positions to reveal in all.
            revealed: Positions revealed now.
        """
        ...


SCHEDULES: Registry[Schedule] = Registry("schedule")


def ceil_div(numerator: Tensor, denominator: Tensor | int) -> Tensor:
    """Divide integers, rounding up."""
    return -(-numerator // denominator)


def even_target(step: PerRow, num_steps: PerRow, total: PerRow) -> PerRow:
    """Give the number of positions revealed after `step` when `total` are spread evenly over `num_steps`, early ones first."""
    # a row that has finished stays in the batch and may be asked about steps past its last; a row without steps has 0
    return ceil_div((step + 1) * total, num_steps.clamp(min=1)).minimum(total)


_MILLION = 1_000_000


def first_step_at(share: float, num_steps: PerRow) -> PerRow:
    """Give the first step s with s / num_steps >= share, in integers: shares count to a millionth, rounded down."""
    # a share in millionths, rounded down, so that binary rounding cannot lift 0.55 of 100 steps above 55
    return ceil_div(num_steps * int(share * _MILLION), _MILLION)


@SCHEDULES.register("even")
@dataclass(frozen=True)
class EvenSchedule:
    """Reveal the same number at each step; between two points of the way, take back up to `num_remask` at each.

    What is taken back is granted again on top, so the number revealed follows the same line with or without remasking and
    the forward passes stay `num_steps` (PRISM, arXiv 2510.01384). The last step takes nothing back.

    Args:
        num_remask: Positions that may be taken back per step and row, >= 0.
        remask_from: Share of the steps after which remasking begins, in [0, 1].
        remask_until: Share of the steps from which it has ended, in [0, 1], not before `remask_from`.
    """

    num_remask: int = 0
    remask_from: float = 0.0
    remask_until: float = 1.0

    def __post_init__(self) -> None:
        require_int(self, "num_remask", minimum=0)
        require_number(self, "remask_from", "a share of the steps in [0, 1]", low=0, high=1)
        require_number(self, "remask_until", "a share of the steps in [0, 1]", low=0, high=1)
        if self.remask_from > self.remask_until or (self.num_remask and self.remask_from == self.remask_until):
            raise ConfigurationError(
                f"`remask_from` of EvenSchedule must be before `remask_until`, or no step would take anything back, found "
                f"{self.remask_from} and {self.remask_until}."
            )

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        target = even_target(step, num_steps, total)
        active = (step >= first_step_at(self.remask_from, num_steps)) & (step < first_step_at(self.remask_until, num_steps))
        remask = revealed.minimum(total - target).clamp(max=self.num_remask) * active
        return Budget(remask=remask, target=target)


@SCHEDULES.register("loop")
@dataclass(frozen=True)
class LoopSchedule:
    """Draft fast, then correct: fill everything in the first steps, then take back and refill at every look.

    From the end of the draft on, each look refills what the look before took back and may take back `num_remask` more; the
    last only refills.

    Args:
        num_remask: Positions that may be taken back per look and row, >= 0; 0 where later looks only overwrite.
        draft_share: Share of the steps that draft, in (0, 1], rounded up.
    """

    num_remask: int
    draft_share: float

    def __post_init__(self) -> None:
        require_int(self, "num_remask", minimum=0)
        require_number(self, "draft_share", "a share of the steps in (0, 1]", low=0, high=1, open_low=True)

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        active = (step >= self._draft_steps(num_steps)) & (step < num_steps - 1)
        return Budget(
            remask=revealed.clamp(max=self.num_remask) * active,
            target=even_target(step, self._draft_steps(num_steps), total),
        )

    def _draft_steps(self, num_steps: PerRow) -> PerRow:
        return first_step_at(self.draft_share, num_steps)


@SCHEDULES.register("plateau")
@dataclass(frozen=True)
class PlateauSchedule:
    """Draft up to a level, stay there while tokens are taken back and refilled, and then finish (ReMDM-loop).

    arXiv 2503.00307, section 4.2, where time runs from 1 to 0: `t_on` is 1 - `begin`, `t_off` 1 - `end`, `alpha_on` the level.

    Args:
        num_remask: Positions that may be taken back per look of the plateau and row, >= 1.
        begin: Share of the steps after which the level is reached, in (0, 1).
        end: Share of the steps from which it is left, in (0, 1), after `begin`.
        level: Share of the positions that are revealed there, in (0, 1), rounded down.
    """

    num_remask: int
    begin: float = 0.45
    end: float = 0.95
    level: float = 0.9

    def __post_init__(self) -> None:
        require_int(self, "num_remask", minimum=1)
        for name in ("begin", "end", "level"):
            require_number(self, name, "a share in (0, 1)", low=0, high=1, open_low=True)
        if self.begin >= self.end or self.level == 1 or self.end == 1:
            raise ConfigurationError(
                f"PlateauSchedule needs `begin` < `end` < 1 and `level` < 1, found {self.begin}, {self.end} and {self.level}."
            )

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        begin, end = (first_step_at(share, num_steps) for share in (self.begin, self.end))
        end = end.minimum(num_steps - 1)  # the last look finishes
        level = total * int(self.level * _MILLION) // _MILLION
        drafting = even_target(step, begin, level)
        finishing = level + even_target(step - end, num_steps - end, total - level)
        on = (step >= begin) & (step < end)
        target = torch.where(step < begin, drafting, torch.where(on, level, finishing))
        target = torch.where(step >= num_steps - 1, total, target)
        remask = revealed.minimum(total - target).clamp(max=self.num_remask) * on
        return Budget(remask=remask, target=target)


@SCHEDULES.register("caps")
@dataclass(frozen=True)
class CapsSchedule:
    """Reveal the same number at each step; take back more in the middle of the way than at its end (FreeCorrection).

    arXiv 2602.02927: its code takes back up to 16, 8 and 4 positions of 4,096 a step in the three parts after 0.4 of the steps.

    Args:
        caps: Positions that may be taken back per step and row in equal parts of the rest of the way, each >= 0, one >= 1.
        begin: Share of the steps after which taking back begins, in [0, 1).
    """

    caps: tuple[int, ...] = (16, 8, 4)
    begin: float = 0.4

    def __post_init__(self) -> None:
        object.__setattr__(self, "caps", require_ints(self, "caps", minimum=0))
        require_number(self, "begin", "a share of the steps in [0, 1)", low=0, high=1)
        if self.begin == 1 or not any(self.caps):
            raise ConfigurationError(
                f"CapsSchedule takes nothing back with `begin` {self.begin} and `caps` {self.caps}; lower `begin`, or give a "
                "cap of at least 1."
            )

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        target = even_target(step, num_steps, total)
        cap, width = torch.zeros_like(step), (1 - self.begin) / len(self.caps)
        for number, most in enumerate(self.caps):
            cap = torch.where(step >= first_step_at(self.begin + number * width, num_steps), most, cap)
        active = step > first_step_at(self.begin, num_steps) - 1
        return Budget(remask=revealed.minimum(total - target).minimum(cap) * active, target=target)


@SCHEDULES.register("rollback")
@dataclass(frozen=True)
class RollbackSchedule:
    """Reveal a fixed number a look, and give what was taken back looks of its own: time is rolled back (BackPlay).

    arXiv 2601.06428. The looks that the draft leaves over are the bound: nothing is taken back that they could not refill.

    Args:
        num_remask: Positions that may be taken back per look and row, >= 1.
        draft_share: Share of the steps that would fill everything if nothing were taken back, in (0, 1), rounded up.
    """

    num_remask: int = 2
    draft_share: float = 0.75

    def __post_init__(self) -> None:
        require_int(self, "num_remask", minimum=1)
        require_number(self, "draft_share", "a share of the steps in (0, 1)", low=0, high=1, open_low=True)
        if self.draft_share == 1:
            raise ConfigurationError(
                "`draft_share` of RollbackSchedule must be below 1, or no look would be left for what is taken back, found 1."
            )

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        pace = ceil_div(total, first_step_at(self.draft_share, num_steps).clamp(min=1))
        left = (num_steps - step).clamp(min=1)  # looks from this one on
        target = revealed + pace.maximum(ceil_div(total - revealed, left)).minimum(total - revealed)
        room = ((left - 1) * pace - (total - target)).clamp(min=0)
        return Budget(remask=revealed.minimum(room).clamp(max=self.num_remask), target=target, refills=False)


@SCHEDULES.register("own_pace")
@dataclass(frozen=True)
class OwnPaceSchedule:
    """Let the rules set the pace: at least one position a look, and no refill of what is taken back but by later looks.

    T2M (arXiv 2604.18738), LLaDA2.1's editing and WINO (arXiv 2507.18578) go on until a block is full and stands the look; so
    `num_steps` is what a hard row may use, and where it is short the looks that are left share the rest evenly.

    Args:
        num_remask: Positions that may be taken back per look and row, >= 0.
    """

    num_remask: int = 0

    def __post_init__(self) -> None:
        require_int(self, "num_remask", minimum=0)

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        left = (num_steps - step).clamp(min=1)  # looks from this one on
        pace = ceil_div(total - revealed, left).clamp(min=1)
        remask = revealed.clamp(max=self.num_remask) * (step < num_steps - 1)
        return Budget(remask=remask, target=revealed + pace.minimum(total - revealed), refills=False)


@SCHEDULES.register("redraft")
@dataclass(frozen=True)
class RedraftSchedule:
    """Draft, look at the whole, and where that is doubted draft it anew, as long as the steps reach.

    The first draft follows the line of `EvenSchedule`, a later one shares what is left to reveal evenly over the looks that
    are left; no look is granted less than one position. So an unmasking rule that goes faster, such as `RedraftUnmasking`,
    sets the pace, a draft that is ahead of the line is not hurried, and what it saves is there for another. Each look at a
    full canvas may take back all of it; a rule that reveals no more than its grant fills the canvas at the last look, where
    there is nothing to take back for.

    Args:
        min_steps: Looks that another draft must have left to be begun, >= 1.
    """

    min_steps: int = 4

    def __post_init__(self) -> None:
        require_int(self, "min_steps", minimum=1)

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        left = (num_steps - step).clamp(min=1)  # looks from this one on
        may_redraft = (step > 0) & (revealed == total) & (left > self.min_steps)
        # behind the line, as every draft but the first is, the looks that are left share the rest
        behind = (even_target(step, num_steps, total) - revealed).clamp(min=1)
        return Budget(remask=revealed * may_redraft, target=revealed + ceil_div(total - revealed, left).minimum(behind))


@SCHEDULES.register("refine")
@dataclass(frozen=True)
class RefineSchedule:
    """Draft everything, look at the whole, take back what is doubted, fill that evenly again; several rounds.

    Steps are shared over the rounds, remainder first. The first round drafts. Each later one begins with a look at a full
    canvas, which may take back `num_remask` positions; its other looks fill them. With a rule that takes back only what it
    doubts, a row that stands the look is finished. Iterative partial refinement (arXiv 2605.19317) redraws a quarter of the
    parts, chosen at random; here the remasking rule chooses.

    Args:
        num_remask: Positions that may be taken back at the beginning of a round, per row, >= 1.
        num_rounds: The draft and the rounds after it, >= 2. A round after the draft that has but one step does nothing.
    """

    num_remask: int
    num_rounds: int

    def __post_init__(self) -> None:
        require_int(self, "num_remask", minimum=1)
        require_int(self, "num_rounds", minimum=2)

    def __call__(self, step: PerRow, num_steps: PerRow, total: PerRow, revealed: PerRow) -> Budget:
        length, longer = num_steps // self.num_rounds, num_steps % self.num_rounds
        # rounds before `boundary` have one step more
        boundary = longer * (length + 1)
        late = step >= boundary
        local = torch.where(late, (step - boundary) % length.clamp(min=1), step % (length + 1))
        left = torch.where(late, length, length + 1) - local  # steps of this round from here on
        left = torch.where(step >= num_steps, 1, left).clamp(min=1)
        checks = (local == 0) & (step > 0) & (left >= 2) & (step < num_steps) & (revealed == total)
        return Budget(
            remask=revealed.clamp(max=self.num_remask) * checks,
            target=revealed + ceil_div(total - revealed, left),
        )
