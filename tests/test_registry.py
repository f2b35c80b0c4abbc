import json
from dataclasses import dataclass

import pytest

from prism_plugin.errors import ConfigurationError, UnknownKeyError, UnknownNameError
from prism_plugin.registry import Registry


@dataclass(frozen=True)
class Gentle:
    strength: float
    rounds: int = 2


@pytest.fixture
def registry():
    registry = Registry("test rule")
    registry.register("gentle_rule")(Gentle)
    return registry


def test_what_is_written_is_read_back(registry):
    stored = json.loads(json.dumps(registry.to_dict(Gentle(0.5, rounds=3))))
    assert stored == {"name": "gentle_rule", "strength": 0.5, "rounds": 3}
    assert registry.from_dict(stored) == Gentle(0.5, rounds=3)


def test_reading_leaves_the_mapping_alone(registry):
    stored = {"name": "gentle_rule", "strength": 0.5}
    assert registry.from_dict(stored) == Gentle(0.5)
    assert stored == {"name": "gentle_rule", "strength": 0.5}


def test_names_are_listed_in_order(registry):
    registry.register("another")(Gentle)
    assert registry.names() == ("another", "gentle_rule")


def test_a_near_name_is_suggested(registry):
    with pytest.raises(UnknownNameError, match=r"called 'gentle-rule' \(did you mean 'gentle_rule'\?\); known: gentle_rule"):
        registry.get("gentle-rule")


@pytest.mark.parametrize("name", [["gentle_rule"], {}, None])
def test_a_name_that_is_no_text_is_unknown(registry, name):
    with pytest.raises(UnknownNameError, match=r"No test rule is called .*; known: gentle_rule"):
        registry.get(name)


def test_a_far_name_lists_what_is_known(registry):
    with pytest.raises(UnknownNameError, match=r"^No test rule is called 'zzz'; known: gentle_rule\.$"):
        registry.get("zzz")


def test_an_unknown_setting_is_refused(registry):
    with pytest.raises(
        UnknownKeyError, match=r"a\.json: nothing reads 'strenght' \(did you mean 'strength'\?\); known: rounds"
    ):
        registry.from_dict({"name": "gentle_rule", "strenght": 0.5}, source="a.json")


def test_a_missing_setting_is_named(registry):
    with pytest.raises(ConfigurationError, match="test rule needs 'strength'; add it"):
        registry.from_dict({"name": "gentle_rule"})


@pytest.mark.parametrize("stored", [{"strength": 0.5}, "gentle_rule", None])
def test_a_mapping_with_a_name_is_needed(registry, stored):
    with pytest.raises(ConfigurationError, match="must be a mapping with the test rule's 'name' and its settings, found"):
        registry.from_dict(stored)


def test_only_registered_classes_are_saved(registry):
    with pytest.raises(UnknownNameError, match=r"Only a registered test rule can be saved, found function; .* gentle_rule"):
        registry.to_dict(lambda view, budget: None)


@pytest.mark.parametrize("name", ["Gentle", "gentle-rule", "", "1st", "a b"])
def test_a_name_is_lower_case_with_underscores(registry, name):
    with pytest.raises(ConfigurationError, match="needs a name of lower-case letters, digits and _, found"):
        registry.register(name)(Gentle)


def test_a_name_is_given_once(registry):
    with pytest.raises(ConfigurationError, match="The test rule 'gentle_rule' is Gentle already"):
        registry.register("gentle_rule")(Gentle)


def test_only_dataclasses_have_names(registry):
    with pytest.raises(ConfigurationError, match="int must be a dataclass to be saved as a test rule"):
        registry.register("number")(int)
