import torch

from prism_plugin.core.labels import drafted_labels, visible_labels

CLEAN = torch.tensor([[1, 2, 3, 4, 5]])
DRAFT = torch.tensor([[1, 2, 7, 9, 5]])  # 9 is the mask
PROMPT = torch.tensor([[False, True, True, True, True]])


def test_drafted_labels_judge_what_was_filled():
    labels = drafted_labels(DRAFT, CLEAN, torch.tensor([[False, True, True, False, False]]))
    assert labels.labelled.tolist() == [[False, True, True, False, False]]
    assert labels.targets.tolist() == [[False, True, False, False, False]]


def test_visible_labels_judge_what_is_not_masked():
    labels = visible_labels(DRAFT, CLEAN, PROMPT, DRAFT == 9)
    assert labels.labelled.tolist() == [[False, True, True, False, True]]
    assert labels.targets.tolist() == [[False, True, False, False, True]]
