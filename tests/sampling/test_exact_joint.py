"""One token a look, each from the exact posterior, draws from the exact joint distribution: a chi-square test says so."""

import pytest
import torch

from prism_plugin.core import RandomUnmasking
from prism_plugin.core.schedules import EvenSchedule
from prism_plugin.core.selection import true_places
from prism_plugin.decoding import Canvas, GeneratorChance, Loop, Seen, Separate
from prism_plugin.decoding.looks import Logits
from prism_plugin.evaluation.tasks.enumerable import three_letter_table

TABLE = three_letter_table()
MASK, LENGTH, RUNS = TABLE.num_letters, TABLE.length, 60_000


def posteriors():
    """log p(letter | canvas) at every position of every canvas."""
    mass, logits = TABLE.mass(), torch.full((len(TABLE.canvases), LENGTH, MASK + 1), -torch.inf)
    for place in range(LENGTH):
        for letter in range(MASK):
            filled = TABLE.canvases.clone()
            filled[:, place] = letter
            logits[:, place, letter] = mass[TABLE.index_of(filled)].log().float()
    return logits.log_softmax(-1)


POSTERIORS = posteriors()


def exact_look(model, state, want, memory):
    index = true_places(want.masked, want.num_masked)
    rows = POSTERIORS[TABLE.index_of(state.tokens)].flatten(0, 1)[index]
    return Seen(Logits(rows, index), None, None), memory


def chi_square(num_steps, *, temperature=1.0):
    """Of sequences drawn over so many looks, against the table."""
    tokens = torch.full((RUNS, LENGTH), MASK)
    everywhere, none = torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    canvas = Canvas(tokens, everywhere.long(), everywhere, none, torch.ones(RUNS, dtype=torch.long))
    chance = GeneratorChance(torch.Generator().manual_seed(0), [LENGTH] * RUNS, with_uniforms=True, with_noise=True)
    loop = Loop(
        None, Separate(RandomUnmasking()), EvenSchedule(), num_steps, MASK, (MASK,), chance, temperature=temperature,
        look=exact_look, padded=False,
    )  # fmt: skip
    state = loop.begin(canvas)
    while (step := loop.advance(state)) is not None:
        state = step.state
    found = loop.finish(state).tokens
    radix = MASK ** torch.arange(LENGTH - 1, -1, -1)
    counts = torch.bincount((found * radix).sum(-1), minlength=MASK**LENGTH).double()
    expected = TABLE.counts.flatten().double() / TABLE.counts.sum() * RUNS
    assert expected.min() > 20
    return float(((counts - expected) ** 2 / expected).sum())


# Of 26 degrees of freedom: 54.05 is exceeded once in a thousand.
ONCE_IN_A_THOUSAND = 54.05


def test_one_token_a_look_is_exact():
    assert MASK**LENGTH == 27
    assert chi_square(LENGTH) < ONCE_IN_A_THOUSAND


@pytest.mark.parametrize("wrong", [{"num_steps": 1}, {"num_steps": 2}, {"num_steps": LENGTH, "temperature": 0.9}], ids=str)
def test_tokens_written_together_and_another_temperature_are_found_out(wrong):
    assert chi_square(**wrong) > 2 * ONCE_IN_A_THOUSAND
