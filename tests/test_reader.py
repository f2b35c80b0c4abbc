from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pytest

from prism_plugin.errors import ConfigurationError, UnknownKeyError
from prism_plugin.reader import changed, fits, from_mapping

if TYPE_CHECKING:
    from nowhere import Unknown


class Rule(Protocol):
    def __call__(self) -> None: ...


class Pace(Enum):
    SLOW = "slow"
    FAST = "fast"


@dataclass(frozen=True)
class Part:
    share: tuple[float, float]
    weight: float = 1.0

    def __post_init__(self):
        if self.weight < 0:
            raise ConfigurationError(f"`weight` must be 0 or more, found {self.weight}.")


@dataclass(frozen=True)
class Whole:
    on: bool
    count: int = 1
    size: float | None = None
    pace: Pace = Pace.SLOW
    where: Literal["here", "there"] = "here"
    names: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    listed: list[str] | str = ""
    rule: Rule | None = None
    anything: Any = None
    bare: tuple = ()
    bare_mapping: dict | None = None


def read(**values):
    return from_mapping(Whole, {"on": True, **values}, source="a.json")


def test_values_become_what_the_fields_say():
    parts = [{"share": [0, 0.5]}, {"share": [0.1, 1], "weight": 2}]
    made = read(size=2, pace="fast", parts=parts, listed=["a"], rule=read, anything={"a": [1]}, bare=[1, "a"])
    assert made.bare == (1, "a")
    assert made.parts == (Part((0, 0.5)), Part((0.1, 1), 2))
    assert (made.size, made.pace, made.listed, made.rule, made.anything) == (2, "fast", ["a"], read, {"a": [1]})
    assert changed(made, {"count": 3}, source="b").parts == made.parts


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"on": 1}, "a.json: `on` must be true or false, found 1."),
        ({"on": 1.0}, "a.json: `on` must be true or false, found 1.0."),
        ({"count": "3"}, "a.json: `count` must be an integer, found '3'."),
        ({"count": True}, "a.json: `count` must be an integer, found True."),
        ({"count": 3.0}, "a.json: `count` must be an integer, found 3.0."),
        ({"count": 2**63}, "a.json: `count` must be an integer, found 9223372036854775808."),
        ({"size": 10**40}, f"a.json: `size` must be a number or null, found {10**40}."),
        ({"size": False}, "a.json: `size` must be a number or null, found False."),
        ({"size": float("nan")}, "a.json: `size` must be a number or null, found nan."),
        ({"pace": "brisk"}, "a.json: `pace` must be one of slow, fast, found 'brisk'."),
        ({"where": ["here"]}, "a.json: `where` must be one of here, there, found ['here']."),
        ({"names": {"a": "1"}}, "a.json: `names` must be a mapping from text to an integer, found {'a': '1'}."),
        ({"names": {1: 1}}, "a.json: `names` must be a mapping from text to an integer, found {1: 1}."),
        ({"listed": [1]}, "a.json: `listed` must be a list, each text or text, found [1]."),
        ({"parts": {"share": [0, 1]}}, "a.json: `parts` must be a list, each a mapping of settings, found {'share': [0, 1]}."),
        ({"parts": [{"share": [0]}]}, "a.json, `parts`: `share` must be a list of 2: a number, a number, found [0]."),
        ({"bare": 3}, "a.json: `bare` must be a list, found 3."),
        ({"bare_mapping": [1]}, "a.json: `bare_mapping` must be a mapping or null, found [1]."),
        ({"parts": [{}]}, "a.json, `parts` needs 'share'; add it."),
        ({"parts": [{"share": [0, 1], "weight": -1}]}, "a.json, `parts`: `weight` must be 0 or more, found -1."),
    ],
)
def test_another_type_is_one_sentence_with_file_and_key(values, words):
    with pytest.raises(ConfigurationError) as caught:
        read(**values)
    assert str(caught.value) == words
    with pytest.raises(ConfigurationError) as caught:
        changed(read(), values, source="a.json")
    assert str(caught.value) == words


def test_keys_must_be_known_and_there():
    with pytest.raises(UnknownKeyError, match=r"a\.json: nothing reads '1', 'cuont' \(did you mean 'count'\?\); known: "):
        from_mapping(Whole, {1: 2, "cuont": 3}, source="a.json")
    with pytest.raises(ConfigurationError, match=r"^a\.json needs 'on'; add it\.$"):
        from_mapping(Whole, {}, source="a.json")
    with pytest.raises(ConfigurationError, match=r"^a\.json needs 'weight'; add it\.$"):
        from_mapping(Part, {"share": [0, 1]}, source="a.json", whole=True)
    assert from_mapping(Part, {"share": [0, 1]}, source="a.json", whole=True, optional={"weight"}) == Part((0, 1))
    with pytest.raises(ConfigurationError, match=r"a\.json must be a mapping of settings, found 3"):
        from_mapping(Whole, 3, source="a.json")


def test_annotations_that_only_a_type_checker_can_read_are_left_to_the_class():
    @dataclass
    class Foreign:
        value: "Unknown"

    assert from_mapping(Foreign, {"value": 3}, source="a.json") == Foreign(3)


def test_types_without_a_class():
    assert fits({"a": {1: {"b": 2}}}, dict[str, dict[int, dict[str, Any]]])
    assert not fits({"a": {True: {}}}, dict[str, dict[int, dict[str, Any]]])
    assert not fits({"share": [0, 1], "weight": -1}, Part)
