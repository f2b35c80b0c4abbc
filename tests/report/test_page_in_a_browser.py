"""The page in headless Chromium: the slider is moved, tokens are read, and they say what the records say."""

import re

import pytest
import torch
from browser import CHROMIUM, browser
from small_traces import MASK, NEW, PROMPT, RULES, sampler_of

from prism_plugin.core import EvenSchedule
from prism_plugin.report import trace_generation, write_trace_page
from prism_plugin.sampling import RemaskingSampler

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: `apt-get install chromium`, or any that is named chromium"),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def long_text(model, tmp_path_factory):
    """512 new tokens: the records, and the page."""
    sampler = RemaskingSampler(model, num_steps=24, temperature=1.0, **RULES | {"schedule": EvenSchedule(num_remask=9)})
    ids = torch.randint(3, MASK, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    output = sampler.sample(ids, max_new_tokens=NEW, generator=torch.Generator().manual_seed(0), return_trace=True)
    page = tmp_path_factory.mktemp("page") / "trace.html"
    generation = trace_generation(output, 0, sampler)
    square = trace_generation(output, 0, sampler, columns=19)
    write_trace_page(page, [generation, square])
    return output.trace, page.as_uri()


def state_after(trace, look, at):
    """What a position is after so many looks, and its figures, read from the records one by one."""
    if at < PROMPT:
        return "given", []
    state, filled, then, now, backs = "masked", None, None, None, 0
    for number, record in enumerate(trace[:look], start=1):
        quality = float(record.quality[0, at])
        state = "masked" if state == "taken" else "kept" if state == "filled" else state
        if quality == quality:
            then, now = then or (quality, number), (quality, number)
        if record.remasked[0, at]:
            state, backs, then = "taken", backs + 1, None
        if record.unmasked[0, at]:
            state, then, now = "filled", None, None
            filled = (number, float(record.confidence[0, at]))
    facts = [] if state == "masked" else [f"at look {filled[0]}, confidence {filled[1]:.3f}"]
    facts += [f"{then[0]:.3f} (look {then[1]})"] if state == "kept" else []
    facts += [f"{now[0]:.3f} (look {now[1]})"] if state in ("kept", "taken") else []
    facts += [f"{ {1: 'once', 2: 'twice'}.get(backs, f'{backs} times') } so far"] if backs else []
    return state, facts


def near(said, expected):
    """Whether the panel holds a fact; the third digit may differ by one, where Python and the page round a half."""
    pattern = re.escape(re.sub(r"\d\.\d{3}", "#", expected)).replace("\\#", r"(\d\.\d{3})").replace("#", r"(\d\.\d{3})")
    wanted = [float(value) for value in re.findall(r"\d\.\d{3}", expected)]
    return any(
        all(abs(float(value) - want) < 0.0015 for value, want in zip(found.groups(), wanted, strict=True))
        for found in re.finditer(pattern, said)
    )


def look_at(tab, look):
    slider = "const s = document.getElementById('look'); s.value = LOOK; s.dispatchEvent(new Event('input'))"
    tab.run(f"(() => {{ {slider.replace('LOOK', str(look))} }})()")


def point_at(tab, at):
    tab.run(f"document.querySelector('[data-position=\"{at}\"]').focus()")


def test_every_token_says_what_the_records_say(tab, long_text):
    trace, url = long_text
    tab.open(url)
    seen = set()
    for look in (0, 1, 2, 11, len(trace)):
        look_at(tab, look)
        states = tab.run("[...document.querySelectorAll('[data-position] .token')].map(token => token.dataset.state)")
        assert states == [state_after(trace, look, at)[0] for at in range(PROMPT + NEW)]
        for state in set(states):
            at = len(states) - 1 - states[::-1].index(state)
            point_at(tab, at)
            said = tab.text("#detail")
            assert f"token {at + 1} of {PROMPT + NEW}" in said
            for fact in state_after(trace, look, at)[1]:
                assert near(said, fact), (look, at, fact, said)
            seen.add(state)
    assert seen == {"given", "masked", "filled", "kept", "taken"}


def test_the_keyboard_moves_the_slider_and_goes_from_token_to_token(tab, long_text):
    trace, url = long_text
    tab.open(url + "#look=3")
    tab.run("document.getElementById('look').focus()")
    tab.press("ArrowRight")
    filled, taken = int(trace[3].unmasked.sum()), int(trace[3].remasked.sum())
    assert tab.text("#status").startswith(f"Look 4 of {len(trace)}: {filled} filled, {taken} taken back")
    assert tab.run("document.getElementById('look').getAttribute('aria-valuetext')") == tab.text("#status")
    tab.press("Home")
    assert tab.text("#status") == f"Before the first look: {NEW} masked"
    point_at(tab, 5)
    tab.press("ArrowRight")
    assert tab.run("document.activeElement.dataset.position") == "6"
    assert tab.run("document.activeElement.getAttribute('aria-label')").startswith(f"token 7 of {PROMPT + NEW}, given")
    tab.press("Enter")
    assert tab.run("location.hash") == "#generation=1&look=0&token=7"
    assert tab.run("document.querySelectorAll('[tabindex=\"0\"][data-position]').length") == 1


def test_an_address_says_what_is_shown(tab, long_text):
    trace, url = long_text
    tab.open(url + "#generation=2&look=7&token=39")
    assert tab.run("document.getElementById('look').value") == "7"
    assert "row 3, column 1" in tab.text("#detail")
    assert tab.run("document.querySelectorAll('.line').length") == (PROMPT + NEW) // 19
    tab.open(url + "#generation=9&look=-4&token=x")  # nothing of it is there: the last look of the first one
    assert tab.text("#status").startswith(f"Look {len(trace)} of {len(trace)}")


def test_play_ends_at_the_last_look(tab, long_text):
    trace, url = long_text
    tab.open(url + f"#look={len(trace) - 1}")
    tab.run("document.getElementById('play').click()")
    assert tab.text("#play") == "Pause"
    tab.run("new Promise(done => setTimeout(done, 1200))", wait=True)
    assert tab.text("#status").startswith(f"Look {len(trace)} of ")
    assert tab.text("#play") == "Play"


def test_a_row_without_masks_has_a_page_too(model, tab, tmp_path):
    sampler = sampler_of(model)
    output = sampler.infill(torch.tensor([[5, 6, 7, 8], [5, MASK, 7, 8]]), return_trace=True)
    write_trace_page(tmp_path / "page.html", [trace_generation(output, row, sampler, name=f"row {row}") for row in (0, 1)])
    tab.open((tmp_path / "page.html").as_uri())
    assert tab.text("#status") == "Before the first look: 0 masked"
    tab.run("(() => { const w = document.getElementById('which'); w.value = 1; w.dispatchEvent(new Event('change')) })()")
    assert tab.text("#status").startswith("Look 1 of 1: 1 filled")
    assert tab.problems == []


@pytest.mark.parametrize("pixels", [360, 1200])
def test_512_tokens_fit_the_width_and_nothing_was_asked_for_or_went_wrong(tab, long_text, pixels):
    _, url = long_text
    tab.width(pixels)
    tab.requests.clear()
    tab.open(url + "#look=12")
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert {request.split("#")[0] for request in tab.requests} == {url}
    assert tab.problems == []
