"""The task `text`: figures as defined, cheats caught by one of them, texts read and refused, answers found on canvases."""

import math
from dataclasses import replace

import pytest
import torch
from reference.character_model import CharacterModel as LiteralModel

from benchmarks.text_figures import measure
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.evaluation.compare import answer_rows, row_batches
from prism_plugin.evaluation.tasks import Figure, Text
from prism_plugin.evaluation.tasks.character_model import CharacterModel
from prism_plugin.evaluation.tasks.text_rows import cut, read_texts
from prism_plugin.evaluation.tasks.written import Written
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

REFERENCE = "the cat sat on the mat.\na dog ran to the door.\nDon't run, cat.\n"


@pytest.fixture
def reference(tmp_path):
    (tmp_path / "reference.txt").write_text(REFERENCE, encoding="utf-8")
    return str(tmp_path / "reference.txt")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return attach_quality_head(tiny_backbone(), tokenizer=tiny_tokenizer())


def test_rows_of_a_family_without_a_mask_are_filled_by_length_and_stay_in_their_order(model, reference, monkeypatch):
    task = Text(reference=reference, prefix=5, max_new_tokens=6)
    texts = ["the cat", "a", "a dog", "b", "it"]
    sampler = RemaskingSampler.from_preset("random", model, num_steps=3)
    alone = answer_rows(task, sampler, texts, 7, batch_size=1)
    monkeypatch.setattr(model, "spec", replace(model.spec, attention_mask="none"))
    assert row_batches(task, model, texts, 2) == [[0, 2], [1, 3], [4]]
    together = answer_rows(task, sampler, texts, 7, batch_size=2)
    assert together.num_positions.tolist() == alone.num_positions.tolist()
    for name, figure in alone.figures.items():
        for part in ("total", "count"):
            torch.testing.assert_close(getattr(together.figures[name], part), getattr(figure, part))
        assert together.figures[name].kinds == figure.kinds


@pytest.mark.parametrize("order", [1, 2, 3, 7, 40])
def test_bits_are_those_of_the_literal_recursion(order):
    texts = [line.strip() for line in REFERENCE.splitlines()] + ["", "x", "the cat"]
    answers = [
        ("", "the cat ran"),
        ("the ", "cat"),
        ("zz", "q\U0001f600!"),
        ("", ""),
        ("mat.", "a"),
        ("", "\x00the the mat sat"),
    ]
    literal = LiteralModel(texts, order)
    expected = torch.tensor([literal.bits(text, given) for given, text in answers], dtype=torch.float64)
    torch.testing.assert_close(CharacterModel(texts, order).bits(answers), expected)
    history = "the "
    sum_ = sum(literal.probability(character, history) for character in literal.alphabet | {"\x00"})
    assert sum_ == pytest.approx(1), "the characters that were seen, and one for all others"


def test_figures_are_as_defined(reference):
    task = Text(reference=reference)
    answers = [
        Written("the d", "og sat. Dogg ca", goes_on=True),  # a word that was begun, one that is none, one that was cut off
        Written("", "ca the the"),
        Written("the cat", "."),  # what was given is nobody's answer
    ]
    figures = task.judged(answers)
    assert list(figures) == list(Text.figures)
    assert figures["valid_words"].total.tolist() == [3, 2, 0]
    assert figures["valid_words"].count.tolist() == [4, 3, 1]
    assert figures["word_entropy"].total.tolist() == pytest.approx([2, math.log2(3) - 2 / 3, 0])
    assert figures["distinct_words"].total.tolist() == [4, 1, 0], "of the second, only `the` is new"
    assert figures["distinct_words"].value == 5 / 7
    bits = task.judge_by.characters.bits([("the d", "og sat. dogg ca"), ("", "ca the the"), ("the cat", ".")])
    assert figures["bits_per_character"].value == pytest.approx(float(bits.sum()) / (15 + 10 + 1))


def test_different_words_are_those_of_all_rows_whatever_the_parts():
    rows = [["a", "b", "a"], [], ["b", "c"], ["c", "c", "d", "a"]]
    whole = Figure.of_kinds(rows)
    assert whole.value == 4 / 9
    assert whole.stderr is None
    parts = Figure.joined([Figure.of_kinds(rows[:1]), Figure.of_kinds(rows[1:3]), Figure.of_kinds(rows[3:])])
    assert torch.equal(parts.total, whole.total)
    assert parts.value == whole.value
    assert Figure.joined([Figure.of_kinds([]), Figure.of_kinds([])]).value is None


def test_what_cheats_at_one_figure_is_caught_by_another(tmp_path):
    found = {name: {one: figure.value for one, figure in figures.items()} for name, figures in measure(tmp_path, 60).items()}
    people = found["people"]
    common, always, noise, shuffled = (
        found[name]
        for name in ("the ten commonest words", "the likeliest text, always", "random letters", "words drawn by frequency")
    )
    assert people["valid_words"] > 0.9
    assert common["valid_words"] == 1
    assert common["word_entropy"] < people["word_entropy"] - 0.5
    assert common["distinct_words"] < people["distinct_words"] / 10
    assert always["bits_per_character"] < people["bits_per_character"]
    assert always["valid_words"] > 0.9
    assert always["distinct_words"] < people["distinct_words"] / 10
    assert noise["distinct_words"] > people["distinct_words"]
    assert noise["valid_words"] < 0.5
    assert all(shuffled[name] > people[name] for name in ("valid_words", "word_entropy", "distinct_words"))
    assert shuffled["bits_per_character"] > people["bits_per_character"] + 0.5


def test_a_word_list_says_which_words_are_valid(reference, tmp_path):
    (tmp_path / "words.txt").write_text("Zebra\nsat\n", encoding="utf-8")
    task = Text(reference=reference, words=str(tmp_path / "words.txt"))
    assert task.judged([Written("", "zebra the sat")])["valid_words"].total.tolist() == [2]


def test_answers_are_read_where_the_masks_were(reference, model):
    task, rows = Text(reference=reference, max_new_tokens=6, prefix=5), ["the cat sat", "a dog ran"]
    ids, mask = task.canvas(rows, model)
    assert ids.shape == mask.shape == (2, 11)
    filled = ids.clone()
    for row, text in enumerate(("at sat", " ra[EOS]x")):
        filled[row, 5 : 5 + 6] = torch.tensor(model.tokenizer(text)["input_ids"] + [model.tokenizer.pad_token_id])[:6]
    figures = task.judge(rows, filled, model)
    assert figures["valid_words"].total.tolist() == [2, 0], "cat, sat; ra, which the EOS token ends"
    assert figures["valid_words"].count.tolist() == [2, 1]
    assert task.known(rows)[0] == {"prompt": "the c", "completion": "at sat"}


def test_a_canvas_of_nothing_has_what_the_tokenizer_adds(reference, model):
    task = Text(reference=reference, max_new_tokens=4)
    ids, mask = task.canvas(["the cat", "a"], model)
    assert ids.tolist() == [[model.mask_token_id] * 4] * 2
    assert mask.all()
    assert task.known(["the cat"]) == [{"text": "the cat"}]


def test_texts_are_rows_or_pieces(tmp_path):
    plain, rows = tmp_path / "book.rst", tmp_path / "rows.jsonl"
    plain.write_text("One  two\nthree fourteen\n", encoding="utf-8")
    rows.write_text('{"text": "a b"}\n{"text": "c"}\n', encoding="utf-8")
    assert read_texts(plain, 8) == ["One  two", "three", "fourteen"]
    assert read_texts(rows, None) == ["a b", "c"]
    assert read_texts(rows, 2) == ["a", "b", "c"]
    assert cut("abcdefgh ij klm", 3) == ["abc", "def", "gh", "ij", "klm"]
    assert read_texts(plain.rename(tmp_path / "book.txt"), None) == ["One  two", "three fourteen"]


@pytest.mark.parametrize(
    ("settings", "file", "error", "words"),
    [
        ({"reference": None}, "a b c", ConfigurationError, r"name a file of them, .* `reference=FILE`"),
        ({"reference": "nowhere.txt"}, "a b c", DataFormatError, "nowhere.txt cannot be read"),
        ({"reference": "numbers.txt"}, "a b c", DataFormatError, "numbers.txt holds no word to judge by"),
        ({}, " \n", DataFormatError, "data.txt holds no text"),
        ({"prefix": 3}, "a b c\na b\n", DataFormatError, "text 1: a text must be longer than the `prefix` of 3 .*, found 3"),
        ({"prefix": 5, "piece": 6}, "a b\n", DataFormatError, "holds no text longer than the `prefix` of 5"),
    ],
)
def test_bad_files_are_refused(reference, tmp_path, monkeypatch, settings, file, error, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text(file, encoding="utf-8")
    (tmp_path / "numbers.txt").write_text("1 2\n", encoding="utf-8")
    with pytest.raises(error, match=words):
        Text(**{"reference": reference, **settings}).rows("data.txt")


def test_other_rows_and_other_files_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (tmp_path / "book.rst").write_text("a b", encoding="utf-8")
    with pytest.raises(DataFormatError, match="rows need a column `text`, found prompt, completion"):
        read_texts(tmp_path / "rows.jsonl", None)
    with pytest.raises(DataFormatError, match=r"give their longest length in characters, `piece` \(`--piece 256`\)"):
        read_texts(tmp_path / "book.rst", None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
        ({"prefix": -1}, "`prefix` must be at least 0, got -1"),
        ({"piece": 8, "prefix": 8}, "`piece` must be at least 2 characters, and more than the `prefix` of 8, got 8"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        Text(**settings)


def test_a_model_without_a_tokenizer_is_refused(reference):
    with pytest.raises(ConfigurationError, match="The task `text` is about texts, so the adapter needs a tokenizer"):
        Text(reference=reference).require_model(attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31)))
