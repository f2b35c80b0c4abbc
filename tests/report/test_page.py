"""The page as text: it can be written, holds what it was given, asks for nothing outside, and no token breaks it."""

import json
import re
from html.parser import HTMLParser

import pytest
from pages import contrast

from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.report import Generation, Look, require_page_path, trace_page, write_trace_page
from prism_plugin.report.page import _SUFFIXES

NASTY = ["</script><script>alert(1)</script>", "<!--", "]]>", "&amp;", "\u2028", "\ud800", "'\"`${x}{{ 7 }}", "<img src=//x>"]


def generation_of(pieces):
    looks = [Look(filled=[[0, 1, 500]], overwritten=[], taken_back=[], padded=[], quality=[-1], why=[], num_forwards=1)]
    shown = {"name": pieces[-1], "columns": None, "doubt_below": 500, "settings": {"unmasking": pieces[-1]}}
    return Generation(pieces=pieces, start=[0] * 2, editable=[0], looks=looks, **shown)


class Elements(HTMLParser):
    """Start tags with their attributes, and the texts of scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def data_of(page):
    return json.loads(Elements(page).scripts[0])


@pytest.mark.parametrize("piece", NASTY)
def test_no_token_breaks_the_page(tmp_path, piece):
    write_trace_page(tmp_path / "page.html", [generation_of(["[MASK]", piece])], title=piece)
    elements = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    plain = Elements(trace_page([generation_of(["[MASK]", "x"])]))
    assert elements.tags == plain.tags
    assert data_of((tmp_path / "page.html").read_text(encoding="utf-8"))[0]["pieces"][1] == piece


def test_the_data_are_those_that_were_given():
    one = generation_of(["[MASK]", "x"])
    data = data_of(trace_page([one, one]))
    assert data == [json.loads(json.dumps(one.to_dict()))] * 2


def test_nothing_outside_is_asked_for():
    page = trace_page([generation_of(["[MASK]", "x"])])
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)
    assert not [
        tag for tag, attributes in Elements(page).tags if {"src", "href"} & set(attributes) or tag in ("link", "iframe")
    ]
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none';")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_scheme(scheme):
    page = trace_page([generation_of(["[MASK]", "x"])])
    roots = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)  # light, dark, light, dark: of all pages, and of this one
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", "".join(roots[scheme == "dark" :: 2])))
    assert len(colors) >= 11
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent", "taken", "doubt") for ground in ("page", "card")]
    for ink, ground in [*pairs, ("ink", "given-back"), ("filled", "filled-back"), ("taken", "taken-back")]:
        assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)  # WCAG 2.2, 1.4.3


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(SavingError, match=r"page.html could not be written .*No space left.*what stood there is unchanged"):
        write_trace_page(page, [generation_of(["[MASK]", "x"])])
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.read_text() == "old"


def test_places_that_can_hold_no_page_are_known_before(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    for suffix in _SUFFIXES:
        require_page_path(tmp_path / "new" / "deep" / f"page{suffix}")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigurationError, match=r"must be named so, found .*data\.txt; write .*data\.txt\.html, for example"):
        require_page_path(tmp_path / "data.txt")
    with pytest.raises(SavingError, match=r"folder\.html is a folder and cannot be overwritten by a page; choose another name"):
        require_page_path(tmp_path / "folder.html")
    with pytest.raises(SavingError, match=r"no page can be written to .*Not a directory.*choose a folder that can be written"):
        require_page_path(tmp_path / "file" / "page.html")

    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)  # tests may run as root, who may write everywhere
    with pytest.raises(SavingError, match=r"no page can be written to .*Permission denied"):
        require_page_path(tmp_path / "page.html")
