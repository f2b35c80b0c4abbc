"""A chart of values against costs, laid out: where axes, lines, points, bars and names go. A template draws it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 860, 440
LEFT, RIGHT, TOP, BOTTOM = 62, 196, 14, 50  # names of the lines stand in the right margin
_NAME_HEIGHT = 16
_WIDE = 4  # costs that differ by more than this factor are shown on a scale of doublings


@dataclass(frozen=True)
class Point:
    """A value with its standard error, what it cost, and how it is read out."""

    cost: float
    value: float
    stderr: float
    text: str


@dataclass(frozen=True)
class Line:
    """Points of one name, in the order in which they are joined; `style` numbers its colour, `filled` its markers."""

    name: str
    style: int
    filled: bool
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point as it is drawn: its place, the ends of its bar, and how it is read out."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """A line as it is drawn: its path, its marks, and the height of its name."""

    line: Line
    path: str
    marks: tuple[Mark, ...]
    name_y: float


@dataclass(frozen=True)
class Chart:
    """All of it. Frame: left, right, top and bottom of the field."""

    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    lines: tuple[Drawn, ...]

    @property
    def frame(self) -> dict[str, float]:
        """The field, and the whole picture."""
        return {
            "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM, "width": WIDTH, "height": HEIGHT
        }  # fmt: skip


def lay_chart(lines: Sequence[Line], formed: Callable[[float], str]) -> Chart:
    """Lay out lines so that all points and their bars are within.

    Args:
        lines: At least one, with at least one point.
        formed: Writes a value of the vertical axis.
    """
    points = [point for line in lines for point in line.points]
    place_x, columns = _across([point.cost for point in points])
    place_y, rows = _upwards(
        min(point.value - point.stderr for point in points), max(point.value + point.stderr for point in points), formed
    )
    ends = [place_y(line.points[-1].value) for line in lines]
    drawn = []
    for line, name_y in zip(lines, _apart(ends), strict=True):
        marks = []
        for one in line.points:
            y, low, high = (place_y(one.value + bars * one.stderr) for bars in (0, -1, 1))
            marks.append(Mark(place_x(one.cost), y, low, high, one.text))
        path = "M" + "L".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in marks)
        drawn.append(Drawn(line, path, tuple(marks), name_y))
    return Chart(tuple(columns), tuple(rows), tuple(drawn))


def closer(lines: Sequence[Line]) -> list[Line]:
    """The lines that come into the upper third of all values, where that leaves others out and two are left; else none."""
    values = [point.value for line in lines for point in line.points]
    bound = max(values) - (max(values) - min(values)) / 3
    upper = [line for line in lines if max(point.value for point in line.points) >= bound]
    return upper if 2 <= len(upper) < len(lines) else []


def _across(costs: Sequence[float]) -> tuple[Callable[[float], float], list[Tick]]:
    low, high = min(costs), max(costs)
    doubles = low > 0 and high / low > _WIDE
    scale: Callable[[float], float] = math.log2 if doubles else float
    margin = max((scale(high) - scale(low)) * 0.04, 0.02 if doubles else 0.5)
    first, last = scale(low) - margin, scale(high) + margin

    def place(cost: float) -> float:
        return LEFT + (scale(cost) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    return place, [Tick(place(one), f"{one:g}") for one in (_doublings if doubles else _round_numbers)(first, last)]


def _upwards(low: float, high: float, formed: Callable[[float], str]) -> tuple[Callable[[float], float], list[Tick]]:
    margin = max((high - low) * 0.06, abs(high) * 1e-3, 1e-9)
    first, last = low - margin, high + margin

    def place(value: float) -> float:
        return HEIGHT - BOTTOM - (value - first) / (last - first) * (HEIGHT - TOP - BOTTOM)

    return place, [Tick(place(one), formed(one)) for one in _round_numbers(first, last)]


def _doublings(first: float, last: float) -> list[float]:
    """Powers of two and what lies half-way to the next, between two of their exponents."""
    numbers = [factor * 2.0**power for power in range(math.floor(first), math.floor(last) + 1) for factor in (1, 1.5)]
    return [number for number in numbers if first <= math.log2(number) <= last]


def _round_numbers(low: float, high: float) -> list[float]:
    """About six numbers of 1, 2 or 5 times a power of ten between two."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _apart(wanted: Sequence[float]) -> list[float]:
    """Heights of names near those that are wanted, far enough from each other to be read, within the picture."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    heights = [wanted[index] for index in order]
    lowest = HEIGHT - BOTTOM
    for index, height in enumerate(heights):
        heights[index] = max(height, heights[index - 1] + _NAME_HEIGHT if index else TOP + 4)
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], lowest - _NAME_HEIGHT * (len(heights) - 1 - index))
    return [height for _, height in sorted(zip(order, heights, strict=True))]
