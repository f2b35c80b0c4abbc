import pytest
import torch

from prism_plugin.core.corruption import draw_times, mask_tokens
from prism_plugin.errors import ConfigurationError


def test_a_token_is_masked_when_its_number_is_below_t():
    noised = mask_tokens(
        torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]]),
        torch.tensor([[True, True, True, False], [True, True, True, True]]),
        mask_token_id=9,
        t=torch.tensor([0.5, 1.0]),
        noise=torch.tensor([[0.49, 0.5, 0.1, 0.0], [0.0, 0.3, 0.6, 1 - 2.0**-24]]),
    )
    assert noised.noised_ids.tolist() == [[9, 6, 9, 8], [9, 9, 9, 9]]
    assert noised.masked.tolist() == [[True, False, True, False], [True] * 4]
    assert noised.t.tolist() == [0.5, 1.0]


def test_the_clean_tokens_stay():
    clean = torch.tensor([[5, 6]])
    mask_tokens(clean, torch.ones(1, 2, dtype=torch.bool), mask_token_id=9, t=torch.ones(1), noise=torch.zeros(1, 2))
    assert clean.tolist() == [[5, 6]]


@pytest.mark.other_types
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"clean_ids": [[5, 6]]}, "`clean_ids` of mask_tokens must be a tensor, found list"),
        ({"maskable": [[True, True]]}, "`maskable` of mask_tokens must be a tensor, found list"),
        ({"maskable": torch.tensor([[2, 0]])}, "`maskable` of mask_tokens must be a bool tensor, found torch.int64"),
        ({"t": 0.5}, "`t` of mask_tokens must be a tensor, found float"),
    ],
)
def test_what_is_no_tensor_is_refused(changed, words):
    good = {"clean_ids": torch.tensor([[5, 6]]), "maskable": torch.ones(1, 2).bool(), "t": torch.ones(1)}
    with pytest.raises(ConfigurationError, match=words):
        mask_tokens(**{**good, **changed}, mask_token_id=9, noise=torch.zeros(1, 2))


@pytest.mark.parametrize("t", [float("nan"), 0.0, -0.5, 1.5])
def test_a_probability_out_of_range_is_refused(t):
    clean, maskable = torch.tensor([[5, 6]] * 2), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match=r"Masking probabilities `t` must lie in \(0, 1\], found \[0.5, "):
        mask_tokens(clean, maskable, mask_token_id=9, t=torch.tensor([0.5, t]), noise=torch.zeros(2, 2))


def test_times_fill_the_interval():
    assert draw_times(torch.tensor([0.0, 0.5]), 0.2, 0.6).tolist() == pytest.approx([0.2, 0.4])
    assert draw_times(torch.tensor([0.0, 1 - 2.0**-24]), 1e-3, 1.0).le(1).all()


@pytest.mark.parametrize(("t_min", "t_max"), [(0.0, 1.0), (0.5, 0.4), (0.1, 1.1), (float("nan"), 1.0)])
def test_times_are_probabilities_above_zero(t_min, t_max):
    with pytest.raises(ConfigurationError, match="Masking probabilities need 0 < t_min <= t_max <= 1, found t_min="):
        draw_times(torch.zeros(1), t_min, t_max)
