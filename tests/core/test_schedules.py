import itertools
from fractions import Fraction

import pytest
import torch
from reference import schedules as reference

from prism_plugin.core.schedules import (
    SCHEDULES,
    CapsSchedule,
    EvenSchedule,
    LoopSchedule,
    OwnPaceSchedule,
    PlateauSchedule,
    RedraftSchedule,
    RefineSchedule,
    RollbackSchedule,
    first_step_at,
)
from prism_plugin.core.view import unmask_grant
from prism_plugin.errors import ConfigurationError

GRID = torch.tensor(list(itertools.product(range(13), range(1, 17))))  # (total, num_steps), one row each
SOME = {
    "even": [
        EvenSchedule(),
        EvenSchedule(1),
        EvenSchedule(3, remask_from=0.5),
        EvenSchedule(99, remask_from=0.25, remask_until=0.75),
    ],
    "loop": [LoopSchedule(1, 0.5), LoopSchedule(3, 1 / 3), LoopSchedule(99, 0.01), LoopSchedule(2, 1.0)],
    "redraft": [RedraftSchedule(), RedraftSchedule(1), RedraftSchedule(3)],
    "refine": [RefineSchedule(1, 2), RefineSchedule(3, 3), RefineSchedule(99, 5)],
    "plateau": [PlateauSchedule(1), PlateauSchedule(99, 0.25, 0.75, 0.5)],
    "caps": [CapsSchedule(), CapsSchedule((2, 0, 1), 0.0), CapsSchedule((1,), 0.75)],
    "own_pace": [OwnPaceSchedule(), OwnPaceSchedule(2), OwnPaceSchedule(99)],
    "rollback": [RollbackSchedule(), RollbackSchedule(1, 0.5), RollbackSchedule(99, 0.1)],
}
ALL = [schedule for schedules in SOME.values() for schedule in schedules]


def test_every_registered_schedule_is_tested():
    assert sorted(SOME) == list(SCHEDULES.names())
    assert all(type(schedule) is SCHEDULES.get(name) for name, schedules in SOME.items() for schedule in schedules)


def expected_budget(schedule, step, num_steps, total, revealed):
    if isinstance(schedule, EvenSchedule):
        window = Fraction(str(schedule.remask_from)), Fraction(str(schedule.remask_until))
        return reference.even_budget(step, num_steps, total, revealed, schedule.num_remask, *window)
    if isinstance(schedule, RefineSchedule):
        return reference.refine_budget(step, num_steps, total, revealed, schedule.num_remask, schedule.num_rounds)
    if isinstance(schedule, PlateauSchedule):
        shares = (Fraction(str(share)) for share in (schedule.begin, schedule.end, schedule.level))
        return reference.plateau_budget(step, num_steps, total, revealed, schedule.num_remask, *shares)
    if isinstance(schedule, CapsSchedule):
        return reference.caps_budget(step, num_steps, total, revealed, schedule.caps, Fraction(str(schedule.begin)))
    if isinstance(schedule, OwnPaceSchedule):
        return reference.own_pace_budget(step, num_steps, total, revealed, schedule.num_remask)
    if isinstance(schedule, RollbackSchedule):
        share = Fraction(str(schedule.draft_share))
        return reference.rollback_budget(step, num_steps, total, revealed, schedule.num_remask, share)
    if isinstance(schedule, RedraftSchedule):
        return reference.redraft_budget(step, num_steps, total, revealed, schedule.min_steps)
    share = Fraction(schedule.draft_share).limit_denominator(100)
    return reference.loop_budget(step, num_steps, total, revealed, schedule.num_remask, share)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_budgets_match_exact_fractions(schedule):
    cases = [(s, n, total, r) for n in (1, 2, 5, 12) for s in range(n) for total in (0, 1, 7) for r in range(total + 1)]
    step, num_steps, total, revealed = torch.tensor(cases).unbind(-1)
    budget = schedule(step, num_steps, total, revealed)
    assert list(zip(budget.remask.tolist(), budget.target.tolist(), strict=True)) == [
        expected_budget(schedule, *case) for case in cases
    ]


@pytest.mark.parametrize("schedule", ALL, ids=str)
@pytest.mark.parametrize("greedy", [False, True], ids=["exact", "reveals more than granted"])
def test_every_run_ends_full_and_the_last_step_takes_nothing_back(schedule, greedy):
    total, num_steps = GRID.unbind(-1)
    revealed = torch.zeros_like(total)
    generator = torch.Generator().manual_seed(0)
    for number in range(16):
        step = torch.full_like(total, number)
        before = step, num_steps, total, revealed
        copies = [tensor.clone() for tensor in before]
        budget = schedule(*before)
        again = schedule(*before)
        assert torch.equal(budget.remask, again.remask)
        assert torch.equal(budget.target, again.target)
        assert all(torch.equal(a, b) for a, b in zip(before, copies, strict=True))
        assert (budget.remask >= 0).all()
        assert (budget.remask <= revealed).all()
        assert not budget.remask[number >= num_steps - 1].any()
        # a rule may take back less than it is granted
        remasked = (budget.remask * torch.randint(3, total.shape, generator=generator) / 2).long()
        grant = unmask_grant(budget, revealed, remasked, total - revealed)
        if greedy:
            grant = (grant + torch.randint(3, total.shape, generator=generator)).minimum(total - revealed)
        running = number < num_steps
        revealed = torch.where(running, revealed - remasked + grant, revealed)
        assert torch.equal(revealed[number == num_steps - 1], total[number == num_steps - 1])
    assert torch.equal(revealed, total)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_rows_at_their_end_or_without_steps_are_left_alone(schedule):
    step, num_steps, total = torch.tensor([5, 9, 0, 3]), torch.tensor([5, 5, 0, 0]), torch.tensor([7, 7, 0, 0])
    budget = schedule(step, num_steps, total, total)
    assert budget.remask.tolist() == [0, 0, 0, 0]
    assert budget.target.tolist() == [7, 7, 0, 0]


def test_shares_of_steps_are_exact():
    num_steps = torch.arange(1, 1001)
    for percent in range(101):
        assert torch.equal(first_step_at(percent / 100, num_steps), (num_steps * percent + 99) // 100), percent
    for third in (1, 2):
        assert torch.equal(first_step_at(third / 3, num_steps), (num_steps * third + 2) // 3), third


@pytest.mark.other_types
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EvenSchedule(-1), "`num_remask` of EvenSchedule must be an integer of at least 0, found -1"),
        (lambda: EvenSchedule(1.5), "`num_remask` of EvenSchedule must be an integer of at least 0, found 1.5"),
        (lambda: EvenSchedule(1, -0.1), "`remask_from` of EvenSchedule must be a share of the steps in \\[0, 1\\], found -0.1"),
        (
            lambda: EvenSchedule(1, 0, "1"),
            "`remask_until` of EvenSchedule must be a share of the steps in .*, found '1'",
        ),
        (lambda: EvenSchedule(1, 0.6, 0.5), "`remask_from` of EvenSchedule must be before `remask_until`.* found 0.6 and 0.5"),
        (lambda: EvenSchedule(1, 0.5, 0.5), "`remask_from` of EvenSchedule must be before `remask_until`.* found 0.5 and 0.5"),
        (lambda: LoopSchedule(-1, 0.5), "`num_remask` of LoopSchedule must be an integer of at least 0, found -1"),
        (lambda: PlateauSchedule(0), "`num_remask` of PlateauSchedule must be an integer of at least 1, found 0"),
        (lambda: PlateauSchedule(1, 0.6, 0.5), "PlateauSchedule needs `begin` < `end` < 1 .*, found 0.6, 0.5 and 0.9"),
        (lambda: PlateauSchedule(1, level=0), "`level` of PlateauSchedule must be a share in \\(0, 1\\), found 0"),
        (lambda: CapsSchedule((0, 0)), "CapsSchedule takes nothing back with `begin` 0.4 and `caps` \\(0, 0\\)"),
        (lambda: CapsSchedule((1.5,)), "`caps` of CapsSchedule must list integers of at least 0"),
        (lambda: RollbackSchedule(1, 1), "`draft_share` of RollbackSchedule must be below 1"),
        (lambda: RefineSchedule(0, 2), "`num_remask` of RefineSchedule must be an integer of at least 1, found 0"),
        (lambda: RefineSchedule(1, 1), "`num_rounds` of RefineSchedule must be an integer of at least 2, found 1"),
        (lambda: RedraftSchedule(0), "`min_steps` of RedraftSchedule must be an integer of at least 1, found 0"),
        (lambda: LoopSchedule(1, 0), "`draft_share` of LoopSchedule must be a share of the steps in \\(0, 1\\], found 0"),
    ],
)
def test_settings_are_checked(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()
