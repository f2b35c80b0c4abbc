"""Texts with the quality of their tokens, in colours and in plain characters."""

import pytest

from prism_plugin.report.scores import ScoredToken, plain_scores, scores_table, styled_legend, styled_scores

TOKENS = [
    ScoredToken(3, "\u2581the", " the", 0, 3, 0.95, False),
    ScoredToken(4, "\u2581cat", " cat", 4, 7, 0.8, False),
    ScoredToken(5, "\u2581sit", " sit", 8, 11, 0.2, True),
    ScoredToken(31, "[MASK]", "[MASK]", 11, 17, None, False),
    ScoredToken(6, "\n", "\n", 17, 18, 0.6, False),
    ScoredToken(1, "</s>", "</s>", None, None, 0.3, True),
]


def test_tokens_wear_the_colour_of_their_quality_and_spaces_wear_none():
    text = styled_scores(TOKENS)
    assert text.plain == " the cat sit[MASK]\u21b5\n</s>"
    worn = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert worn == {
        "the": "green", "sit": "bold red underline", "[MASK]": "dim", "\u21b5\n": "yellow", "</s>": "red underline",
    }  # fmt: skip


def test_without_colours_what_is_doubted_has_marks():
    assert plain_scores(TOKENS) == " the cat ?sit?[MASK]\u21b5?</s>?"


def test_a_table_has_a_line_for_each_token():
    table = scores_table(TOKENS, title="text 1: [the] cat")
    assert table.row_count == len(TOKENS)
    assert [str(cell) for cell in table.columns[2].cells] == ["0-3", "4-7", "8-11", "11-17", "17-18", "-"]
    assert [str(cell) for cell in table.columns[3].cells] == ["0.950", "0.800", "0.200", "-", "0.600", "0.300"]
    assert [str(cell) for cell in table.columns[4].cells] == ["", "", "doubted", "", "", "doubted"]
    assert table.title.plain == "text 1: [the] cat"


@pytest.mark.parametrize("words", ["0.90 and above", "0.00 and above", "doubted, below 0.4"])
def test_the_legend_says_what_colours_mean(words):
    assert words in styled_legend(0.4).plain
