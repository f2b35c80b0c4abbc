import pytest
import torch

from prism_plugin.data import PrismCollator
from prism_plugin.errors import ConfigurationError, DataFormatError

ROWS = [
    {"example_id": 7, "input_ids": [3, 4, 5], "maskable": [False, True, True]},
    {"example_id": 2, "input_ids": [6], "maskable": [True]},
]


def test_rows_are_padded_on_the_right():
    batch = PrismCollator(pad_token_id=9)(ROWS)
    assert batch.keys() == {"input_ids", "attention_mask", "maskable", "example_id"}
    assert batch["input_ids"].tolist() == [[3, 4, 5], [6, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["maskable"].tolist() == [[False, True, True], [True, False, False]]
    assert batch["example_id"].tolist() == [7, 2]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == batch["example_id"].dtype == torch.int64


def test_recorded_drafts_are_padded_too_and_all_rows_have_them_or_none():
    rows = [{**ROWS[0], "draft_ids": [3, 31, 5]}, {**ROWS[1], "draft_ids": [7]}]
    batch = PrismCollator(pad_token_id=9)(rows)
    assert batch["draft_ids"].tolist() == [[3, 31, 5], [7, 9, 9]]
    assert batch["draft_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[3, 4, 5], [6, 9, 9]]
    for mixed in (ROWS[1], {**ROWS[1], "draft_ids": None}):
        with pytest.raises(
            DataFormatError, match="All rows of a batch need `draft_ids`, or none; the one with `example_id` 2 has none and"
        ):
            PrismCollator(pad_token_id=9)([rows[0], mixed])


def test_padding_that_rows_bring_is_neither_attended_to_nor_maskable():
    padded = {**ROWS[0], "input_ids": torch.tensor([0, 4, 5]), "maskable": [1, 1, 0], "attention_mask": [0, 1, 1]}
    batch = PrismCollator(pad_token_id=9)([padded, ROWS[1]])
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch["maskable"].tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(DataFormatError, match=r"takes no attention mask, .* found rows of 2 and of 3 tokens"):
        PrismCollator(pad_token_id=9, equal_lengths=True)([padded])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"input_ids": [[3]], "maskable": [[True]]}, "`rows` must be a list of rows, .* found dict; of columns by name"),
        ([], "A batch needs at least one row, found none"),
        ([None], r"`rows\[0\]` must be a mapping"),
        ([{"input_ids": [3], "attention_mask": [1]}], "need example_id, input_ids, maskable, found no example_id, maskable"),
        ([{**ROWS[0], "labels": [3, 4, 5]}], "Nothing reads `labels` of prepared rows"),
        ([{**ROWS[0], "attention_mask": [1]}], "`input_ids` and `attention_mask` of a row must be equally long, found 3 and 1"),
        ([{**ROWS[0], "maskable": [2, 0, 1]}], "`maskable` of the row with `example_id` 7 must hold true or false, or 1 or 0"),
    ],
)
def test_what_is_no_list_of_prepared_rows_is_refused(rows, words):
    with pytest.raises(DataFormatError, match=words):
        PrismCollator(pad_token_id=9)(rows)


def test_the_length_can_be_rounded_up():
    assert PrismCollator(pad_token_id=0, pad_to_multiple_of=4)(ROWS)["input_ids"].shape == (2, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pad_token_id": -1}, "`pad_token_id` must not be negative, got -1"),
        ({"pad_token_id": 0, "pad_to_multiple_of": 0}, "`pad_to_multiple_of` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_one_sentence(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        PrismCollator(**settings)
