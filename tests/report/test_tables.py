"""Sentences about figures say them as they are to be used."""

import re

import torch

from prism_plugin.evaluation.calibration import ChosenThreshold
from prism_plugin.report.tables import threshold_sentence


def test_a_threshold_can_be_copied():
    below = torch.tensor(1.0).nextafter(torch.tensor(0.0)).item()  # a head that is too sure gives numbers like these
    threshold = (below + 1) / 2
    said = threshold_sentence(ChosenThreshold(0.5, threshold, precision=0.5, recall=0.1, doubted=0.01))
    (copied,) = re.findall(r"quality_threshold=([\d.]+):", said)
    assert below < float(copied) < 1
