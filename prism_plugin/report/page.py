"""The page that replays generations: one HTML file that asks for nothing outside itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prism_plugin.errors import ConfigurationError
from prism_plugin.report.pieces import printable
from prism_plugin.report.trace import Generation
from prism_plugin.writing import require_place, write_text

_SUFFIXES = {".html", ".htm"}


def trace_page(generations: Sequence[Generation], *, title: str = "Trace of a generation") -> str:
    """Lay generations out as a page with a slider over the looks. It needs no network; see docs/sampling.md.

    Args:
        generations: At least one; of several, one is shown at a time.
        title: Heading of the page.
    """
    return render("trace.html.j2", title=title, generations=[one.to_dict() for one in generations])


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package, which escapes what it is given."""
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    environment.filters["printable"] = printable
    # compact, and in ASCII: also what fits into no encoding (half a surrogate pair) can then be written
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": False}
    return environment.get_template(template).render(values) + "\n"


def write_trace_page(path: str | Path, generations: Sequence[Generation], *, title: str = "Trace of a generation") -> None:
    """Write `trace_page` to a file: beside an old one, then renamed.

    Raises:
        SavingError: If it cannot be written; what stood there is unchanged.
    """
    write_text(Path(path), trace_page(generations, title=title))


def require_page_path(path: Path) -> None:
    """Check, before the work whose result it is to hold, that a page can be written.

    Raises:
        ConfigurationError: If the name is not one of an HTML file, so that nothing else is overwritten by mistake.
        SavingError: If a folder is in the way, or the folder that it belongs to is none or cannot be written.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigurationError(f"a page is an HTML file and must be named so, found {path}; write {path}.html, for example.")
    require_place(path, "page")
