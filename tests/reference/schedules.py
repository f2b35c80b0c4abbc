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


def refine_budget(step, num_steps, total, revealed, num_remask, num_rounds):
    steps = [(number, place) for number in range(num_rounds) for place in range(round_length(num_steps, num_rounds, number))]
    number, place = steps[step]
    left = round_length(num_steps, num_rounds, number) - place
    check = number > 0 and place == 0 and left >= 2 and revealed == total
    return (min(num_remask, revealed) if check else 0), revealed + math.ceil(Fraction(total - revealed, left))


def redraft_budget(step, num_steps, total, revealed, min_steps):
    left = num_steps - step
    again = step > 0 and revealed == total and left > min_steps
    share = math.ceil(Fraction(total - revealed, left))
    behind = even_target(step, num_steps, total) - revealed
    return (total if again else 0), revealed + (share if behind > share else min(max(behind, 1), share))


def round_length(num_steps, num_rounds, number):
    """Steps of a round when they are dealt out one by one."""
    return len(range(number, num_steps, num_rounds))


def plateau_budget(step, num_steps, total, revealed, num_remask, begin, end, level):
    first = math.ceil(begin * num_steps)
    last = min(math.ceil(end * num_steps), num_steps - 1)
    high = math.floor(level * total)
    if step >= num_steps - 1:
        return 0, total
    if step < first:
        return 0, even_target(step, first, high)
    if step < last:
        return min(num_remask, revealed, total - high), high
    return 0, high + even_target(step - last, num_steps - last, total - high)


def caps_budget(step, num_steps, total, revealed, caps, begin):
    target, cap = even_target(step, num_steps, total), 0
    for number, most in enumerate(caps):
        if Fraction(step, num_steps) >= begin + number * (1 - begin) / len(caps):
            cap = most
    return min(cap, revealed, total - target), target


def rollback_budget(step, num_steps, total, revealed, num_remask, draft_share):
    pace = math.ceil(Fraction(total, max(1, math.ceil(draft_share * num_steps))))
    left = num_steps - step
    target = min(total, revealed + max(pace, math.ceil(Fraction(total - revealed, left))))
    room = max(0, (left - 1) * pace - (total - target))  # what later looks can fill beyond what is left to them
    return min(num_remask, revealed, room), target


def own_pace_budget(step, num_steps, total, revealed, num_remask):
    left = num_steps - step
    target = min(total, revealed + max(1, math.ceil(Fraction(total - revealed, left))))
    return (min(num_remask, revealed) if left > 1 else 0), target
