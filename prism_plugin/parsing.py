"""JSON in which no key is given twice: the text of every JSON file that we read."""

import json
from typing import Any


def parse_json(text: str) -> Any:
    """Read JSON. The standard library takes the last of two equal keys, and the first would be ignored.

    Raises:
        ValueError: If it is not valid JSON, an object gives a key twice, or brackets stand in brackets without end.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"{given_twice([key for key, _ in pairs])} given twice")
    return values


def given_twice(keys: list[Any]) -> str:
    """The keys that come again, in words."""
    return ", ".join(dict.fromkeys(str(key) for index, key in enumerate(keys) if key in keys[:index]))
