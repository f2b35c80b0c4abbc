"""Reads pages: the project's in Markdown, and those that it writes in HTML."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of one language, in order."""
    return [body for found, body in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def text_of(page: Path, section: str | None = None) -> str:
    """A page without its fenced blocks; only the part under one heading, up to the next of its level, if `section` is given."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    if section is None:
        return text
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[section]


def tables(text: str) -> list[list[list[str]]]:
    """Tables of a text: rows of cells, without heading and rule; one pair of backticks around a cell is taken off."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        found.append([[re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in row] for row in rows[2:]])
    return found


def data_of(page: Path) -> Any:
    """What a page of `prism_plugin.report` holds for its script."""
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(text)


def contrast(one: str, other: str) -> float:
    """Contrast of two colours written as #rrggbb, by WCAG 2.2: at least 1."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
