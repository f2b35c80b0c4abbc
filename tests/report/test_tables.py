"""Sentences about figures say them as they are to be used."""

import io
import re

import pytest
import torch
from rich.console import Console

from prism_plugin.evaluation.calibration import ChosenThreshold, measure
from prism_plugin.evaluation.quality import SCORES, JudgedTokens
from prism_plugin.report.tables import quality_tables, threshold_sentence


def test_a_threshold_can_be_copied():
    below = torch.tensor(1.0).nextafter(torch.tensor(0.0)).item()  # a head that is too sure gives numbers like these
    threshold = (below + 1) / 2
    said = threshold_sentence(ChosenThreshold(0.5, threshold, precision=0.5, recall=0.1, doubted=0.01))
    (copied,) = re.findall(r"quality_threshold=([\d.]+):", said)
    assert below < float(copied) < 1


@pytest.fixture(scope="module")
def printed():
    """The tables of many states with every score, as they are printed where nobody says how wide a page is."""
    generator = torch.Generator().manual_seed(0)
    count = 120_000
    step = torch.arange(count) % 120
    judged = JudgedTokens(
        scores={name: torch.rand(count, generator=generator) for name in SCORES},
        correct=torch.rand(count, generator=generator) < 0.5,
        row=torch.arange(count) // 1000,
        state=torch.arange(count) // 4,
        masked_share=1 - (step + 1) / 121,
        step=step,
    )
    console = Console(width=80, file=io.StringIO())
    console.print(*quality_tables(measure(judged), title="the sampler's states"), sep="\n")
    return console.file.getvalue()


def test_every_figure_is_readable_in_80_columns(printed):
    assert "…" not in printed
    assert "the sampler's states: 120000 tokens in 30000 states" in printed
    for name in SCORES:
        assert name.replace("_", " ") in printed
    for heading in ("masks", "look"):
        (line,) = (one for one in printed.splitlines() if "tokens" in one and heading in one.split())
        assert line.replace("┃", " ").split() == [
            heading, "tokens", "right", "ECE", "mixed", "quality", "visible", "commit", "mean"
        ]  # fmt: skip


def test_what_is_no_probability_has_no_calibration_to_print(printed):
    (age,) = (line for line in printed.splitlines() if " age " in line)
    cells = [cell.strip() for cell in age.strip("│").split("│")]
    assert cells[0] == "age"
    assert cells[3:] == ["-", "-"]
    assert "-" not in cells[1:3]
