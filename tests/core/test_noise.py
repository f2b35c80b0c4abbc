import pytest
import torch
from reference import noise as reference

from prism_plugin.core.noise import uniforms

LARGEST = 2**63 - 1


@pytest.mark.parametrize("seed", [0, -7, 2**80])
@pytest.mark.parametrize("epoch", [0, 3, -1, LARGEST])
def test_uniforms_are_splitmix(seed, epoch):
    ids = [0, 1, -1, 12345, LARGEST, -LARGEST - 1]
    expected = torch.tensor([reference.uniforms(seed, epoch, example_id, "masked", 5) for example_id in ids])
    assert torch.equal(uniforms(seed, epoch, torch.tensor(ids), "masked", 5), expected)


def test_numbers_of_a_release_never_change():
    # a checkpoint resumed under a later version must draw what it would have drawn
    drawn = uniforms(17, 2, torch.tensor([42]), "masked", 3) * 2**24
    assert drawn.tolist() == [[1986474, 6058385, 4068046]]


def test_values_are_in_the_unit_interval_with_24_bits():
    drawn = uniforms(0, 0, torch.arange(50), "masked", 40)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (50, 40)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert torch.equal(drawn * 2**24, (drawn * 2**24).round())


def test_a_row_does_not_depend_on_length_or_neighbours():
    ids = torch.tensor([5, 9, -3])
    whole = uniforms(1, 4, ids, "tokens", 31)
    for row, example_id in enumerate(ids):
        for length in (0, 1, 30):
            assert torch.equal(uniforms(1, 4, example_id[None], "tokens", length)[0], whole[row, :length])


def test_epochs_per_row_equal_one_by_one():
    ids, epochs = torch.tensor([5, 5, 6]), torch.tensor([0, 3, -2])
    together = uniforms(1, epochs, ids, "tokens", 8)
    for row in range(3):
        assert torch.equal(together[row], uniforms(1, int(epochs[row]), ids[row : row + 1], "tokens", 8)[0])


def test_values_are_uniform():
    counts = torch.histc(uniforms(0, 0, torch.arange(1000), "masked", 256), bins=256, min=0, max=1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 150 < chi_square < 370  # 255 degrees of freedom: mean 255, standard deviation 22.6


def test_pairs_of_neighbours_are_uniform():
    drawn = uniforms(0, 0, torch.arange(1000), "masked", 257)
    for first, second in ((drawn[:, :-1], drawn[:, 1:]), (drawn[:-1], drawn[1:])):
        cells = ((first * 16).long() * 16 + (second * 16).long()).flatten()
        expected = cells.numel() / 256
        chi_square = ((cells.bincount(minlength=256) - expected) ** 2 / expected).sum()
        assert 150 < chi_square < 370


@pytest.mark.parametrize(
    ("seed", "epoch", "name", "shift"),
    [(1, 0, "masked", 0), (0, 1, "masked", 0), (0, 0, "drafted", 0), (0, 0, "masked", 1), (0, 0, "masked", 2**40)],
)
def test_every_key_gives_its_own_numbers(seed, epoch, name, shift):
    ids = torch.arange(400)
    base, other = uniforms(0, 0, ids, "masked", 250), uniforms(seed, epoch, ids + shift, name, 250)
    assert abs(torch.corrcoef(torch.stack((base.flatten(), other.flatten())))[0, 1]) < 0.013  # 4 / sqrt(100,000)
    assert (base == other).float().mean() < 1e-4


def test_draws_do_not_repeat():
    drawn = (uniforms(0, 0, torch.arange(1000), "masked", 100) * 2**24).long().flatten()
    repeats = drawn.numel() - drawn.unique().numel()
    # 100,000 of 2**24 values: 298 coincidences are expected, with a standard deviation of 17
    assert 220 < repeats < 380
    rows = (uniforms(0, 0, torch.arange(100_000), "masked", 3) * 2**24).long()
    assert rows.unique(dim=0).shape[0] == 100_000


def test_numbers_are_made_where_the_ids_are():
    assert uniforms(0, 0, torch.arange(3, device="meta"), "masked", 4).device.type == "meta"


def test_ids_of_any_integer_type_give_the_same():
    assert torch.equal(uniforms(0, 1, torch.arange(3, dtype=torch.int32), "a", 4), uniforms(0, 1, torch.arange(3), "a", 4))
