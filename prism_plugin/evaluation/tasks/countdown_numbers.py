"""Countdown: reach a number from given ones, each used once. Problems, their solutions, and seeded ones to train and test on.

A solution is a list of equations, `7*9=63,63-3=60`: each takes two numbers that are left, given or made before, and leaves its
result. The larger operand stands first, so that a sum or a product has one form.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST_RESULT = 99
OPERATIONS = "+-*/"
_HELD_OUT_OF = 10


@dataclass(frozen=True)
class Problem:
    """Numbers, in ascending order, and the number that is to be reached."""

    numbers: tuple[int, ...]
    target: int

    @classmethod
    def parse(cls, text: str) -> "Problem | None":
        """Read `3,7,9=60`; None if that is not the form."""
        given, equals, target = text.strip().partition("=")
        parts = given.split(",")
        if not equals or len(parts) < 2 or not all(part.isascii() and part.isdigit() for part in (*parts, target)):
            return None
        numbers = sorted(map(int, parts))
        found = cls(tuple(numbers), int(target))
        return found if all(0 < one <= LARGEST_RESULT for one in (*numbers, found.target)) else None

    def __str__(self) -> str:
        return f"{','.join(map(str, self.numbers))}={self.target}"

    @property
    def is_held_out(self) -> bool:
        """Whether it belongs to the one in ten that are never trained on."""
        return zlib.crc32(str(self).encode()) % _HELD_OUT_OF == 0


def combine(one: int, other: int, operation: str) -> int | None:
    """The result of an equation, where it is allowed: a positive integer, no larger than `LARGEST_RESULT`."""
    if operation == "/":
        result = one // other if other and one % other == 0 else 0
    else:
        result = {"+": one + other, "-": one - other, "*": one * other}.get(operation, 0)
    return result if 0 < result <= LARGEST_RESULT else None


def check(problem: Problem, answer: str) -> tuple[int, int, bool]:
    """Check an answer.

    Returns:
        How many equations it has, how many of them are true, and whether it solves the problem: all true, each number used
        once, and the target left.
    """
    left: list[int] | None = list(problem.numbers)
    equations = answer.split(",")
    true = 0
    for equation in equations:
        read = _parse_equation(equation)
        holds = read is not None and combine(*read[:3]) == read[3]
        true += holds
        if read is None or not holds or left is None:
            left = None
            continue
        for used in read[:2]:
            if left is not None and used in left:
                left.remove(used)
            else:
                left = None
        if left is not None:
            left.append(read[3])
    return len(equations), true, left == [problem.target]


def _parse_equation(text: str) -> tuple[int, int, str, int] | None:
    sides = text.split("=")
    operation = next((one for one in OPERATIONS if one in sides[0]), None)
    if len(sides) != 2 or operation is None:
        return None
    parts = [*sides[0].split(operation), sides[1]]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and part == str(int(part)) for part in parts):
        return None
    one, other, result = map(int, parts)
    return one, other, operation, result


def solutions(problem: Problem) -> list[str]:
    """Every solution, in a fixed order; those that differ in the order of their equations alone count as several."""
    return list(dict.fromkeys(_solutions(problem.numbers, problem.target)))


def _solutions(left: tuple[int, ...], target: int) -> Iterator[str]:
    for first in range(len(left)):
        for second in range(first):
            large, small = max(left[first], left[second]), min(left[first], left[second])
            rest = tuple(one for index, one in enumerate(left) if index not in (first, second))
            for operation in OPERATIONS:
                result = combine(large, small, operation)
                if result is None:
                    continue
                equation = f"{large}{operation}{small}={result}"
                if not rest:
                    if result == target:
                        yield equation
                else:
                    yield from (f"{equation},{further}" for further in _solutions((*rest, result), target))


def draw(rng: random.Random, count: int, largest: int) -> tuple[Problem, str]:
    """Draw numbers and combine them at random until a single one is left, which is the target.

    Args:
        rng: Where the chance comes from.
        count: Numbers of the problem, >= 2.
        largest: Largest given number, at most `LARGEST_RESULT`.

    Returns:
        The problem, and the solution that it was made by. Steps that change nothing (times or divided by 1) are left out.
    """
    while True:
        numbers = sorted(rng.randint(1, largest) for _ in range(count))
        left, equations = list(numbers), []
        while len(left) > 1:
            one, other = (left.pop(rng.randrange(len(left))) for _ in range(2))
            large, small, operation = max(one, other), min(one, other), rng.choice(OPERATIONS)
            result = combine(large, small, operation)
            if result is None or (operation in "*/" and small == 1):
                break
            equations.append(f"{large}{operation}{small}={result}")
            left.append(result)
        if len(equations) == count - 1:
            return Problem(tuple(numbers), left[0]), ",".join(equations)
