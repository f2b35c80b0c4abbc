"""YAML in which no key is given twice, with the numbers and truth values of YAML 1.2: recipes, and options written so."""

import re
from pathlib import Path
from typing import Any

import yaml

from prism_plugin.errors import ConfigurationError
from prism_plugin.parsing import given_twice

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and truth values, `<<`, no key twice: PyYAML reads 1.1, with 010 eight, 1:30 ninety, `no` false."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._merged: list[yaml.MappingNode] = []

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what `<<` merges. A key that is merged may be given by the mapping itself, which wins."""
        if node in self._merged:
            return  # by now it holds merged keys too, which its own come after
        twice = given_twice([self._key(key) for key, _ in node.value])
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} given twice", node.start_mark)
        self._merged.append(node)
        super().flatten_mapping(node)

    def _key(self, node: yaml.Node) -> Any:
        return node.value if node.tag == _MERGE else self.construct_object(node, deep=True)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_KEPT_OF_YAML_1_1 = {"tag:yaml.org,2002:null", _MERGE}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in _KEPT_OF_YAML_1_1]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?\d+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML with the numbers and truth values of YAML 1.2.

    Args:
        text: The YAML.
        source: Where it was read, for the error message.

    Raises:
        ConfigurationError: If it is not valid YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader, see above
    # a ValueError where a tag is written out: `!!int one`; a RecursionError where brackets stand in brackets without end
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path, what: str) -> Any:
    """Read a file of YAML as `parse_yaml` does.

    Args:
        path: The file.
        what: What it is, for the error message, such as "The recipe".

    Raises:
        ConfigurationError: If it cannot be read.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error}") from error
