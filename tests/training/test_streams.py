"""Streams: read one row after the other, numbered by a counter, resumed exactly, dealt out to processes."""

import shutil
from itertools import islice

import datasets
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from test_checkpoints import measured, new_trainer, weights
from torch.utils.data import DataLoader

from prism_plugin.data import DataSettings, Origin, prepare_rows, stream_rows
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.training import PrismTrainingArguments

MASK = 31


def stream(rows):
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def texts(count):
    return [{"text": "abcdefgh"[index % 3 : 4 + index % 4]} for index in range(count)]


class Once(torch.utils.data.IterableDataset):
    """Rows that can be read one time only."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


def test_rows_are_prepared_and_numbered_on(lab):
    rows = texts(3)
    prepared = list(prepare_rows(rows, lab.tokenizer, mask_token_id=MASK))
    for source in (stream(rows), stream(prepared)):
        found = list(islice(stream_rows(source, lab.tokenizer, mask_token_id=MASK), 7))
        assert [row["example_id"] for row in found] == list(range(7))
        assert [row["input_ids"] for row in found] == [row["input_ids"] for row in [*prepared, *prepared, prepared[0]]]


def test_a_stream_that_is_shuffled_has_another_order_at_each_reading(lab):
    rows = [{"input_ids": [3 + index]} for index in range(8)]
    found = list(islice(stream_rows(stream(rows).shuffle(seed=0, buffer_size=8), mask_token_id=MASK), 16))
    readings = [[row["input_ids"] for row in part] for part in (found[:8], found[8:])]
    assert readings[0] != readings[1]
    assert sorted(readings[0]) == sorted(readings[1])


def test_long_rows_are_cut_or_left_out_and_it_is_said(lab, caplog):
    rows = [{"text": "abc"}, {"text": "abcdefg"}, {"text": "ab"}, {"text": "abcdef"}]
    how = {"mask_token_id": MASK, "origin": Origin("train_dataset")}
    cut = stream_rows(stream(rows), lab.tokenizer, settings=DataSettings(max_length=4), **how)
    assert [len(row["input_ids"]) for row in islice(cut, 5)] == [3, 4, 2, 4, 3]
    assert caplog.messages == [
        "`train_dataset[1]` is longer than `max_length` 4: it and others like it were cut to it (`overlong: truncate`)."
    ]
    dropped = stream_rows(stream(rows), lab.tokenizer, settings=DataSettings(max_length=4, overlong="drop"), **how)
    assert [row["example_id"] for row in islice(dropped, 3)] == [0, 2, 4]
    short = stream_rows(stream(rows[1:2]), lab.tokenizer, settings=DataSettings(max_length=4, overlong="drop"), **how)
    with pytest.raises(DataFormatError, match="`train_dataset`: all 1 rows are longer than `max_length` 4; raise it"):
        next(iter(short))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Once([{"text": "ab"}] * 2), "`rows` ended after 2 rows and cannot be read again; give a stream that can, or lower"),
        (Once([]), "`rows` holds no row; training needs at least one"),
        (Once([{"text": "ab"}, {"text": ""}]), r"`rows\[1\]`: the row is empty"),
        (Once([{"text": "ab"}, "ab"]), r"`rows\[1\]` must be a mapping of column names to values, found str"),
        (Once([{"text": "ab"}, {"text": "ab", "id": 1}]), r"`rows\[1\]`: all rows .* of the first, text, found text, id"),
    ],
)
def test_what_cannot_be_gone_on_with_is_one_sentence(lab, source, words):
    rows = iter(stream_rows(source, lab.tokenizer, mask_token_id=MASK))
    with pytest.raises(DataFormatError, match=words):
        list(islice(rows, 3))


def test_processes_share_the_rows_that_one_would_have(lab):
    def batches(processes, process, size):
        rows = stream_rows(stream(lab.make_rows(10)), mask_token_id=MASK)
        loader = prepare_data_loader(
            DataLoader(rows, batch_size=size, collate_fn=lab.collate),
            num_processes=processes, process_index=process, dispatch_batches=False, put_on_device=True,
        )  # fmt: skip
        return [batch["example_id"].tolist() for batch in islice(loader, 5)]

    one, parts = batches(1, 0, 4), [batches(2, process, 2) for process in (0, 1)]
    assert one == [first + second for first, second in zip(*parts, strict=True)]
    assert one[3] == [12, 13, 14, 15], "the third batch is of two readings of the ten rows"
    assert PrismTrainingArguments("out", use_cpu=True).accelerator_config.dispatch_batches is False
    with pytest.raises(ConfigurationError, match=r"`accelerator_config.dispatch_batches` must be false, because each"):
        PrismTrainingArguments("out", use_cpu=True, accelerator_config={"dispatch_batches": True})


def test_a_resumed_stream_is_the_one_that_was_not_interrupted(lab, tmp_path):
    def trained(name, **resuming):
        rows = stream(lab.make_rows(10)).shuffle(seed=1, buffer_size=4)
        trainer = new_trainer(lab, tmp_path / name, rows=rows, max_steps=5, logging_steps=2, save_steps=3)
        trainer.train(**resuming)
        return measured(trainer), weights(trainer)

    whole = trained("whole")  # on 20 rows, so the stream is read twice
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = trained("again", resume_from_checkpoint=True)
    assert again[0] == whole[0]
    assert all(torch.equal(again[1][name], value) for name, value in whole[1].items())


def test_a_stream_is_trained_on_for_a_number_of_steps_by_one_reader(lab, tmp_path):
    for settings, words in (
        ({"max_steps": -1}, "A stream has no length, so `max_steps` must say how long to train on it"),
        ({"dataloader_num_workers": 2}, "so `dataloader_num_workers` must be 0, found 2"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            new_trainer(lab, tmp_path, rows=stream(lab.make_rows(4)), **settings)
    for wrong, words in (
        ({"input_ids": [3, 32]}, "must lie in the model's vocabulary, 0 to 31, found 32"),
        ({"input_ids": [3] * 80}, "must have at most .* tokens, .* found 80"),
        ({"input_ids": [3, 4], "draft_ids": [3, 5]}, "has recorded drafts, the column `draft_ids`, which the objective"),
        ({"txt": "ab"}, "Rows need the columns text or"),
    ):
        with pytest.raises(DataFormatError, match=words):
            new_trainer(lab, tmp_path, rows=stream([wrong]))


def test_rows_to_evaluate_on_are_read_to_the_end_of_their_stream(lab, tmp_path):
    rows = lab.make_rows(5)
    figures = [new_trainer(lab, tmp_path, eval_rows=one).evaluate()["eval_loss"] for one in (rows, stream(rows), Once(rows))]
    assert figures[0] == figures[1] == figures[2]
