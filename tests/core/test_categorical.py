import pytest
import torch
from reference import categorical as reference
from views import step_view

from prism_plugin.core.categorical import draw_rows, token_confidence
from prism_plugin.core.forbidding import HeldBack
from prism_plugin.core.unmasking import ConfidenceUnmasking
from prism_plugin.core.view import Decision, apply_step
from prism_plugin.errors import ConfigurationError

MIDDLES = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000  # a grid of uniforms: frequencies are probabilities


def some_rows(count, vocab, dtype=torch.float32, seed=0):
    return (torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed)) * 2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_rows", [1, 3, 4096])
def test_argmax_and_its_figures(dtype, chunk_rows):
    rows = some_rows(7, 11, dtype)
    drawn = draw_rows(rows, forbidden_ids=(0, 4), want_entropy=True, want_margin=True, chunk_rows=chunk_rows)
    for row, logits in enumerate(rows.tolist()):
        probabilities = reference.softmax(logits, forbidden_ids=(0, 4))
        assert drawn.candidates[row] == probabilities.index(max(probabilities))
        assert drawn.confidence[row].item() == pytest.approx(max(probabilities), rel=1e-5)
        assert drawn.entropy[row].item() == pytest.approx(reference.entropy(probabilities), rel=1e-5)
        assert drawn.margin[row].item() == pytest.approx(reference.margin(probabilities), abs=1e-6)
    assert {field.dtype for field in (drawn.confidence, drawn.entropy, drawn.margin)} == {torch.float32}


def test_a_row_of_nan_gives_an_id_that_exists_and_no_confidence():
    for vocab in (31, 32, 599):
        rows = torch.full((3, vocab), torch.nan)
        for temperature in (0.0, 0.7):
            drawn = draw_rows(rows, temperature=temperature, uniforms=torch.tensor([0.0, 0.5, 0.999]))
            assert ((drawn.candidates >= 0) & (drawn.candidates < vocab)).all()
            assert drawn.confidence.isnan().all()


def test_figures_not_asked_for_are_none():
    drawn = draw_rows(some_rows(2, 5))
    assert drawn.entropy is None
    assert drawn.margin is None
    assert draw_rows(some_rows(2, 5), want_margin=True).entropy is None
    assert draw_rows(some_rows(2, 5), want_entropy=True).margin is None


def test_equal_logits_give_the_lowest_id():
    assert draw_rows(torch.zeros(2, 9), forbidden_ids=(0, 1)).candidates.tolist() == [2, 2]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3, 1e-9])
def test_a_grid_of_uniforms_reproduces_the_distribution(temperature, top_p):
    rows = some_rows(4, 9)
    for logits in rows:
        drawn = draw_rows(
            logits.expand(len(MIDDLES), -1), temperature=temperature, top_p=top_p, forbidden_ids=(3,), uniforms=MIDDLES
        )
        expected = reference.nucleus(reference.softmax(logits.tolist(), (3,), temperature), top_p)
        counts = drawn.candidates.bincount(minlength=9).tolist()
        assert counts == pytest.approx([1000 * probability for probability in expected], abs=1)
        plain = reference.softmax(logits.tolist(), (3,))
        assert drawn.confidence.tolist() == pytest.approx([plain[token] for token in drawn.candidates], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_uniform_gives_its_token(dtype):
    rows = some_rows(200, 13, dtype, seed=1)
    uniforms = torch.rand(200, generator=torch.Generator().manual_seed(2))
    drawn = draw_rows(rows, temperature=0.7, top_p=0.9, forbidden_ids=(12,), uniforms=uniforms)
    expected = [
        reference.inverse_cdf(reference.nucleus(reference.softmax(logits, (12,), 0.7), 0.9), uniform)
        for logits, uniform in zip(rows.tolist(), uniforms.tolist(), strict=True)
    ]
    assert drawn.candidates.tolist() == expected


def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass():
    logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log().expand(len(MIDDLES), -1)
    for top_p, kept in [(0.5, {1}), (0.51, {1, 2}), (0.75, {1, 2}), (0.76, {0, 1, 2}), (0.99, {0, 1, 2, 3})]:
        drawn = draw_rows(logits, temperature=1.0, top_p=top_p, uniforms=MIDDLES)
        assert set(drawn.candidates.tolist()) == kept, top_p


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_forbidden_ids_are_never_drawn(temperature, top_p):
    extremes = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-53, 1.0], dtype=torch.float64)
    rows = torch.zeros(5, 6)
    rows[:, 0] = rows[:, 5] = 80.0  # the first and last ids attract every uniform
    drawn = draw_rows(rows, temperature=temperature, top_p=top_p, forbidden_ids=(0, 5), uniforms=extremes)
    assert set(drawn.candidates.tolist()) <= {1, 2, 3, 4}
    assert (drawn.confidence > 0.2).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("vocab", "ends"), [(40, 5), (700, 5), (5120, 400)])
def test_ids_are_held_back_in_rows_of_their_own(vocab, ends, temperature):
    """As if each row were drawn alone, without what is forbidden in it; `ends` ids apart make many blocks or spans of them."""
    rows, uniforms = some_rows(12, vocab) * 3, MIDDLES[::80][:12]
    forbidden, held = (0, vocab - 3, vocab - 2, vocab - 1), tuple(range(3, vocab - 3, ends))
    where = torch.arange(12) % 3 == 0
    at = torch.arange(11, -1, -1)
    settings = {"temperature": temperature, "uniforms": uniforms, "want_entropy": True, "want_margin": True, "chunk_rows": 5}
    drawn = draw_rows(rows, at=at, forbidden_ids=forbidden, held_back=HeldBack(held, where), **settings)
    tokens = torch.full((12,), held[0])
    given = token_confidence(rows, tokens, at=at, forbidden_ids=forbidden, held_back=HeldBack(held, where), chunk_rows=5)
    for some in (where, ~where):
        ids = forbidden + held if some[0] else forbidden
        settings["uniforms"] = uniforms[some]
        alone = draw_rows(rows[at][some], forbidden_ids=ids, **settings)
        for name in ("candidates", "confidence", "entropy", "margin"):
            assert torch.equal(getattr(drawn, name)[some], getattr(alone, name)), name
        assert torch.equal(given[some], token_confidence(rows[at][some], tokens[some], forbidden_ids=ids))
    assert not set(drawn.candidates[where].tolist()) & set(held)
    assert torch.equal(given == 0, where)


def test_chunks_change_nothing():
    rows = some_rows(50, 17)
    settings = {"temperature": 0.9, "top_p": 0.8, "uniforms": MIDDLES[::20].float(), "want_entropy": True, "want_margin": True}
    whole = draw_rows(rows, **settings)
    for chunk_rows in (1, 7, 50):
        parts = draw_rows(rows, **settings, chunk_rows=chunk_rows)
        for name in ("candidates", "confidence", "entropy", "margin"):
            assert torch.equal(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("vocab", [255, 256, 257, 600, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("run", [0, 5, 600], ids="a run of {} too".format)
def test_large_vocabularies(vocab, dtype, run):
    rows = some_rows(40, vocab, dtype)
    rows[:, ::7] = rows[:, :1]  # equals, in several blocks of columns
    rows[::2, vocab - 1] = rows[::2, 3] = rows[::2, 100] = 30.0
    forbidden = (3, vocab - 2, *range(max(40, vocab - run), vocab))  # what pads a vocabulary is a run at its end
    drawn = draw_rows(rows, forbidden_ids=forbidden, want_entropy=True, want_margin=True)
    plain = rows.double()
    plain[:, list(forbidden)] = float("-inf")
    probabilities = plain.softmax(-1)
    assert torch.equal(drawn.candidates, plain.argmax(-1))
    torch.testing.assert_close(drawn.confidence.double(), probabilities.amax(-1), rtol=1e-5, atol=0)
    torch.testing.assert_close(drawn.entropy.double(), torch.special.entr(probabilities).sum(-1), rtol=1e-5, atol=1e-6)
    two = probabilities.topk(2).values
    torch.testing.assert_close(drawn.margin.double(), two[:, 0] - two[:, 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_does_not_depend_on_the_others_nor_on_threads(temperature):
    rows, uniforms = some_rows(9, 40_000), MIDDLES[::100][:9]
    rows[2:4] += torch.tensor([[3000.0], [-3000.0]])  # too far from 0 for `exp` as they are
    settings = {"temperature": temperature, "want_entropy": True, "want_margin": True}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = draw_rows(rows, uniforms=uniforms, **settings)
        torch.set_num_threads(2)  # with two, torch adds up a single row in another order
        for row in range(9):
            alone = draw_rows(rows[row : row + 1], uniforms=uniforms[row : row + 1], **settings)
            for name in ("candidates", "confidence", "entropy", "margin"):
                assert getattr(alone, name)[0] == getattr(whole, name)[row], name
    finally:
        torch.set_num_threads(threads)
    probabilities = rows.double().softmax(-1)
    expected = probabilities.gather(-1, whole.candidates.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(whole.confidence.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_by_number(temperature, dtype):
    rows, at = some_rows(20, 9, dtype), torch.tensor([3, 17, 3, 0])
    settings = {"temperature": temperature, "forbidden_ids": (2,), "uniforms": MIDDLES[::250], "want_margin": True}
    before = rows.clone()
    some, direct = draw_rows(rows, at=at, chunk_rows=3, **settings), draw_rows(rows[at], **settings)
    assert torch.equal(some.candidates, direct.candidates)
    assert torch.equal(some.confidence, direct.confidence)
    assert torch.equal(
        token_confidence(rows, some.candidates, at=at, chunk_rows=3), token_confidence(rows[at], some.candidates)
    )
    assert torch.equal(rows, before)


def test_the_limits_of_temperature():
    rows = some_rows(50, 17)
    cold = draw_rows(rows, temperature=1e-6, uniforms=torch.full((50,), 1 - 2.0**-24))
    assert torch.equal(cold.candidates, draw_rows(rows).candidates)
    hot = draw_rows(rows[:1].expand(1000, -1), temperature=1e9, uniforms=MIDDLES)
    assert hot.candidates.bincount().tolist() == pytest.approx([1000 / 17] * 17, abs=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_are_never_changed(temperature, dtype):
    rows = some_rows(5, 7, dtype)
    before, uniforms = rows.clone(), torch.rand(5)
    draw_rows(rows, temperature=temperature, top_p=0.5, forbidden_ids=(1,), uniforms=uniforms, want_margin=True)
    token_confidence(rows, torch.zeros(5, dtype=torch.long), forbidden_ids=(1,))
    assert torch.equal(rows, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_rows_give_no_tokens(temperature):
    drawn = draw_rows(torch.zeros(0, 7), temperature=temperature, uniforms=torch.zeros(0), want_entropy=True, want_margin=True)
    assert [getattr(drawn, name).shape for name in ("candidates", "confidence", "entropy", "margin")] == [(0,)] * 4
    assert token_confidence(torch.zeros(0, 7), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_a_vocabulary_of_one():
    drawn = draw_rows(torch.zeros(2, 1), temperature=1.0, uniforms=torch.tensor([0.0, 0.9]), want_margin=True)
    assert drawn.candidates.tolist() == [0, 0]
    assert drawn.margin.tolist() == [1, 1]


def test_confidence_of_given_tokens():
    rows, tokens = some_rows(6, 8), torch.tensor([0, 1, 2, 3, 4, 5])
    given = token_confidence(rows, tokens, forbidden_ids=(5,), chunk_rows=4)
    expected = [reference.softmax(logits, (5,))[token] for logits, token in zip(rows.tolist(), tokens.tolist(), strict=True)]
    assert given.tolist() == pytest.approx(expected, rel=1e-5)
    assert given[5] == 0


def test_one_step_equals_llada():
    length, vocab, mask_token_id = 12, 9, 8
    logits = some_rows(length, vocab, seed=3)
    tokens = torch.where(torch.arange(length) % 3 == 0, torch.tensor(2), torch.tensor(mask_token_id))[None]
    masked = tokens == mask_token_id
    for num_unmasked in range(9):
        drawn = draw_rows(logits[masked[0]], forbidden_ids=(mask_token_id,))
        count = torch.tensor([1])
        view = step_view(
            masked=masked,
            revealed=torch.zeros_like(masked),
            editable=masked,
            candidates=tokens.masked_scatter(masked, drawn.candidates),
            confidence=torch.zeros(1, length).masked_scatter(masked, drawn.confidence),
            commit_confidence=torch.ones(1, length),
            step=count,
            num_steps=count,
            total=count,
            times_remasked=torch.zeros_like(tokens),
        )
        reveal = ConfidenceUnmasking()(view, torch.tensor([num_unmasked]))
        after = apply_step(tokens, view.candidates, Decision(reveal, torch.zeros_like(masked)), mask_token_id)
        assert after[0].tolist() == reference.llada_step(tokens[0].tolist(), logits.tolist(), mask_token_id, num_unmasked)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, "`temperature` must be 0 \\(argmax\\) or a finite number above, found -0.1"),
        ({"temperature": float("nan")}, "`temperature` must be 0"),
        ({"temperature": float("inf")}, "`temperature` must be 0"),
        ({"top_p": 0.0}, "`top_p` must be in \\(0, 1\\], found 0.0"),
        ({"top_p": 1.5}, "`top_p` must be in \\(0, 1\\], found 1.5"),
        ({"temperature": 1.0}, "Drawing at temperature 1.0 needs `uniforms`"),
        ({"forbidden_ids": (4,)}, "`forbidden_ids` must be ids below 4 and leave one to draw, found \\(4,\\)"),
        ({"forbidden_ids": (-1,)}, "`forbidden_ids` must be ids below 4"),
        ({"held_back": HeldBack((4,), torch.ones(2, dtype=torch.bool))}, "`held_back` must be ids below 4"),
        ({"forbidden_ids": (0, 1, 2, 3)}, "`forbidden_ids` must be ids below 4 and leave one to draw"),
        ({"chunk_rows": 0}, "`chunk_rows` must be at least 1, found 0"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        draw_rows(torch.zeros(2, 4), **settings)
