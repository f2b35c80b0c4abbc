"""The schedules for one row, in exact fractions."""

import math
from fractions import Fraction


def even_target(step, num_steps, total):
    return min(total, math.ceil(Fraction((step + 1) * total, num_steps)))


def even_budget(step, num_steps, total, revealed, num_remask, remask_from=Fraction(0), remask_until=Fraction(1)):
    target = even_target(step, num_steps, total)
    active = remask_from <= Fraction(step, num_steps) < remask_until
    return (min(num_remask, revealed, total - target) if active else 0), target


def loop_budget(step, num_steps, total, revealed, num_remask, draft_share):
    draft_steps = max(1, math.ceil(draft_share * num_steps))
    if step < draft_steps:
        return 0, even_target(step, draft_steps, total)
    return (min(num_remask, revealed) if step < num_steps - 1 else 0), total
