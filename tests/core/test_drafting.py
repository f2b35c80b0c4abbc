import pytest
import torch
from views import step_view

from prism_plugin.core.drafting import DraftRule, WithinWindow, num_to_draft
from prism_plugin.core.unmasking import EntropyUnmasking, RandomUnmasking
from prism_plugin.errors import ConfigurationError

MASKED = torch.tensor([[True] * 10, [True, False] * 5, [False] * 9 + [True], [False] * 10])
NO_NOISE = torch.zeros(4)


def test_a_number_is_capped_by_the_masks():
    assert num_to_draft(DraftRule(num_drafted=3), MASKED, NO_NOISE).tolist() == [3, 3, 1, 0]


@pytest.mark.parametrize(
    ("share", "noise", "expected"),
    [
        ((0.1, 0.1), 0.5, [1, 1, 1, 0]),  # 0.1 of 10 is 1 and not 2, though 0.1 in float32 is a little more
        ((0.3, 0.3), 0.5, [3, 2, 1, 0]),
        ((0.0, 0.0), 0.5, [1, 1, 1, 0]),
        ((1.0, 1.0), 0.5, [10, 5, 1, 0]),
        ((0.2, 1.0), 0.0, [2, 1, 1, 0]),
        ((0.2, 1.0), 0.5, [6, 3, 1, 0]),
        ((0.2, 1.0), 1 - 2.0**-24, [10, 5, 1, 0]),
    ],
)
def test_a_share_is_rounded_up(share, noise, expected):
    rule = DraftRule(num_drafted=None, share=share)
    assert num_to_draft(rule, MASKED, torch.full((4,), noise)).tolist() == expected


def test_a_share_is_exact_for_any_number_of_masks():
    lengths = torch.arange(1, 1001)
    masked = torch.arange(1000) < lengths.unsqueeze(-1)
    for percent in range(1, 101):
        rule = DraftRule(num_drafted=None, share=(percent / 100, percent / 100))
        assert torch.equal(num_to_draft(rule, masked, torch.zeros(1000)), (lengths * percent + 99) // 100)


def test_each_choice_of_positions_is_a_rule():
    assert DraftRule(positions="random").unmasking == RandomUnmasking()
    assert DraftRule(positions="entropy").unmasking == EntropyUnmasking()
    assert DraftRule(positions="semi_autoregressive", window=4).unmasking == WithinWindow(4)


@pytest.mark.parametrize(
    ("window", "expected"), [(1, [[0], [0], [9], []]), (4, [[2, 3], [0, 2], [9], []]), (99, [[8, 9], [6, 8], [9], []])]
)
def test_the_window_starts_at_the_leftmost_mask(window, expected):
    confidence, count = torch.arange(10).expand(4, -1) / 10, torch.full((4,), 2)
    view = step_view(
        masked=MASKED, revealed=~MASKED, editable=MASKED, candidates=MASKED.long(), confidence=confidence,
        commit_confidence=confidence, step=count, num_steps=count, total=count, times_remasked=MASKED.long(),
    )  # fmt: skip
    chosen = WithinWindow(window)(view, count)
    assert [row.nonzero().flatten().tolist() for row in chosen] == expected


@pytest.mark.other_types
def test_a_list_from_a_file_makes_the_same_rule():
    rule = DraftRule(num_drafted=None, share=[0.2, 0.5])
    assert rule == DraftRule(num_drafted=None, share=(0.2, 0.5))
    assert hash(rule) == hash(DraftRule(num_drafted=None, share=(0.2, 0.5)))


@pytest.mark.other_types
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_drafted": 0}, "`num_drafted` of DraftRule must be an integer of at least 1, found 0"),
        ({"num_drafted": 2.0}, "`num_drafted` of DraftRule must be an integer of at least 1, found 2.0"),
        ({"num_drafted": True}, "`num_drafted` of DraftRule must be an integer of at least 1, found True"),
        ({"num_drafted": None}, "needs either `num_drafted` or `share`, found num_drafted=None and share=None"),
        ({"share": (0.1, 0.5)}, "needs either `num_drafted` or `share`, found num_drafted=8 and share=\\(0.1, 0.5\\)"),
        ({"num_drafted": None, "share": (0.5, 0.1)}, "must be two numbers, 0 <= lowest <= highest <= 1, found \\(0.5, 0.1\\)"),
        ({"num_drafted": None, "share": (0.5, 1.1)}, "must be two numbers, 0 <= lowest <= highest <= 1"),
        ({"num_drafted": None, "share": 0.5}, "must be two numbers, 0 <= lowest <= highest <= 1, found 0.5"),
        ({"num_drafted": None, "share": ("a", "b")}, "must be two numbers, 0 <= lowest <= highest <= 1"),
        ({"num_looks": 0}, "`num_looks` of DraftRule must be an integer of at least 1, found 0"),
        ({"num_looks": 9}, "fills at least one position per look, found num_drafted=8 in num_looks=9; lower num_looks"),
        (
            {"positions": "left"},
            "`positions` of DraftRule must be one of confidence, entropy, margin, random, semi_autoregressive",
        ),
        ({"positions": ["random"]}, "`positions` of DraftRule must be one of"),
        ({"tokens": "greedy"}, "`tokens` of DraftRule must be one of sample, nucleus, argmax, found 'greedy'"),
        ({"window": 4}, "`window` of DraftRule belongs to semi_autoregressive positions .* window=4 with positions='random'"),
        ({"positions": "semi_autoregressive"}, "`window` of DraftRule belongs to .* found window=None"),
        ({"positions": "semi_autoregressive", "window": 0}, "`window` of DraftRule must be an integer of at least 1, found 0"),
        ({"top_p": 0.9}, "`top_p` of DraftRule below 1 belongs to nucleus tokens .* found top_p=0.9 with tokens='sample'"),
        ({"tokens": "nucleus"}, "`top_p` of DraftRule below 1 belongs to nucleus tokens .* found top_p=1.0"),
        ({"tokens": "nucleus", "top_p": 0}, "`top_p` of DraftRule must be a mass in \\(0, 1\\], found 0"),
        ({"temperature": 0}, "`temperature` of DraftRule must be a number above 0, found 0"),
        ({"temperature": float("inf")}, "`temperature` of DraftRule must be a number above 0, found inf"),
        ({"tokens": "argmax", "temperature": 0.5}, "`temperature` of DraftRule does not change argmax tokens, found 0.5"),
        ({"weight": 0.0}, "`weight` of DraftRule must be a number above 0, found 0.0"),
        ({"weight": float("nan")}, "`weight` of DraftRule must be a number above 0, found nan"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        DraftRule(**settings)
