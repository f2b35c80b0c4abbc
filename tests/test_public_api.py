"""The public names: importable, documented, and the same in the package and on the first page."""

import inspect
import re

import pytest
from pages import ROOT, tables, text_of

import prism_plugin


def test_names_are_those_of_the_readme():
    (table,) = tables(text_of(ROOT / "README.md", "Public names"))
    assert [row[0] for row in table] == list(dict.fromkeys(row[0] for row in table))
    assert sorted(row[0] for row in table) == prism_plugin.__all__


@pytest.mark.parametrize("name", prism_plugin.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
    value = getattr(prism_plugin, name)
    assert value.__name__ == name
    assert value.__module__.startswith("prism_plugin.")
    assert inspect.cleandoc(value.__doc__)[0].isupper()
    assert not value.__doc__.startswith(f"{name}("), "a dataclass without a docstring of its own"


@pytest.mark.parametrize("name", ["PrismModel", "RemaskingSampler"])
def test_methods_that_the_readme_names_exist(name):
    (table,) = tables(text_of(ROOT / "README.md", "Public names"))
    methods = re.findall(r"`(\w+)`", dict(table)[name])
    assert len(methods) >= 6
    for method in methods:
        assert inspect.getdoc(getattr(getattr(prism_plugin, name), method))


def test_dir_lists_every_name_before_it_is_used():
    assert set(prism_plugin.__all__) <= set(dir(prism_plugin))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'prism_plugin' has no attribute 'PrismTrainr'"):
        prism_plugin.PrismTrainr  # noqa: B018


def test_version_is_a_release_number_of_the_changelog():
    assert re.fullmatch(r"\d+\.\d+\.\d+", prism_plugin.__version__)
    assert f"## {prism_plugin.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
