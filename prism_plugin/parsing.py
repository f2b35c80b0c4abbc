"""JSON and YAML in which no key is given twice: the text of every file and option that we read."""

import json
import re
from typing import Any

import yaml

from prism_plugin.errors import ConfigurationError


def parse_json(text: str) -> Any:
    """Read JSON. The standard library takes the last of two equal keys, and the first would be ignored.

    Raises:
        ValueError: If it is not valid JSON, or an object gives a key twice.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"{_given_twice([key for key, _ in pairs])} given twice")
    return values


def _given_twice(keys: list[Any]) -> str:
    """The keys that come again, in words."""
    return ", ".join(dict.fromkeys(str(key) for index, key in enumerate(keys) if key in keys[:index]))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and truth values, where PyYAML reads 1e-4 as text and `no` as false; and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        twice = _given_twice([self.construct_object(key, deep=True) for key, _ in node.value])
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_OF_YAML_1_1 = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _OF_YAML_1_1]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_FLOAT = r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789."))


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
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
