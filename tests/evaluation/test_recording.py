"""Recorded states: which are kept, what is told of their history, and that nothing depends on who recorded them."""

import random
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch
from listening import MASK, build_model, make_rows

from prism_plugin.data import prepare_rows
from prism_plugin.errors import ConfigurationError, DataFormatError, UnknownKeyError
from prism_plugin.evaluation.recorded_files import HELD_OUT_FILE, TRAIN_FILE, RecordingFolder
from prism_plugin.evaluation.recording import Recorder, Recording, Source, States, split_into_chunks
from prism_plugin.evaluation.tasks import Sudoku, sudoku_grids
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone

SOURCES = (
    Source(preset="prism", num_steps=5, settings={"num_remask": 2}, share=0.5, of_right=2, of_wrong=9),
    Source(preset="threshold", num_steps=4, settings={"threshold": 0.5}, share=0.5, of_right=1, of_wrong=3),
)
RECORDING = Recording(sources=SOURCES, masked=0.6, held_out=0.25, seed=3, batch_size=3)


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.fixture(scope="module")
def recorder(model):
    return Recorder(model, make_rows(16), RECORDING)


def run(folder, recorder, chunks):
    for chunk in chunks:
        if not folder.has(chunk):
            folder.put(chunk, *recorder.record(chunk))


def read(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def test_states_are_those_of_the_sampler_with_their_history(model, recorder):
    """Against a walk over the sampler's own trace, a row alone."""
    kept, _ = recorder.record(recorder.chunks[0])
    sampler = RemaskingSampler.from_preset("prism", model, num_steps=5, num_remask=2)
    for number in range(3):
        clean = torch.tensor(recorder.row(number)["input_ids"])
        states = [index for index, one in enumerate(kept.number) if one == number]
        trace = walked(sampler, recorder, number)
        assert 0 < len(states) <= len(trace)
        for index in states:
            found = [kept.draft_ids[index], kept.age[index], kept.commit_confidence[index], kept.times_remasked[index]]
            assert len(found[0]) == len(clean)
            assert any(
                all(torch.allclose(one.double(), other.double(), atol=1e-5) for one, other in zip(found, state, strict=True))
                for state in trace
            )


def redrafting(model, **counts):
    """What is kept of a sampler that takes back whole drafts."""
    settings = {"threshold": 0.03, "paces": [3], "min_steps": 1, "visible_threshold": 0.9}
    source = Source(preset="redraft", num_steps=12, settings=settings, **counts)
    recorder, kept = Recorder(model, make_rows(16), replace(RECORDING, sources=(source,))), States()
    for chunk in recorder.chunks:
        found, _ = recorder.record(chunk)
        kept.number.extend(found.number)
        kept.draft_ids.extend(found.draft_ids)
    return recorder, kept


def test_states_of_full_canvases_are_kept_first(model):
    counts = {}
    for of_full in (0, 1):
        _, kept = redrafting(model, of_right=1, of_wrong=1, of_full=of_full)
        assert len(set(kept.number)) == len(kept.number), "one of each row"
        counts[of_full] = [not (draft == MASK).any() for draft in kept.draft_ids]
    assert sum(counts[0]) < sum(counts[1]) == len(counts[1])
    with pytest.raises(ConfigurationError, match="`of_full` of Source must be an integer of at least 0"):
        Source(preset="redraft", num_steps=12, of_full=-1)


def test_a_state_in_which_nothing_could_be_judged_is_left_out(model):
    """As after a draft that was taken back whole; training refuses such a row."""
    recorder, kept = redrafting(model, of_right=99, of_wrong=99)
    sampler, taken_whole = recorder._samplers[0], 0
    for chunk in recorder.chunks:
        for _, ids, mask in recorder._requests(chunk):
            for record in sampler.infill(ids, mask, return_trace=True).trace:
                taken_whole += int(((record.tokens_after == ids).all(-1) & record.looked).sum())
    assert taken_whole > 0, "no draft was taken back whole, so little was seen"
    for number, draft in zip(kept.number, kept.draft_ids, strict=True):
        begun = next(ids[row] for chunk in recorder.chunks for batch, ids, _ in recorder._requests(chunk)
                     for row in range(len(ids)) if batch["example_id"][row] == number)  # fmt: skip
        assert (draft != begun[: len(draft)]).any()


def walked(sampler, recorder, number):
    """A row's states, each with the history of its tokens, read off the records of the looks."""
    (request,) = [
        ids[row, : int(mask[row].sum())]
        for batch, ids, mask in recorder._requests(recorder.chunks[0])
        for row in range(len(ids))
        if batch["example_id"][row] == number
    ]
    states, age, commit, taken = [], torch.full_like(request, -1), torch.ones(len(request)), torch.zeros_like(request)

    def on_step(record):
        nonlocal age, commit, taken
        wrote, took = record.unmasked[0], record.remasked[0]
        age = torch.where(wrote, 0, torch.where(age >= 0, age + 1, age)).masked_fill(took, -1)
        commit = torch.where(wrote, record.confidence[0], commit).masked_fill(took, 1.0)
        taken = taken + took
        states.append((record.tokens_after[0].clone(), age, commit, taken))

    chance = torch.Generator().manual_seed(3 * 1_000_003 + number)
    sampler.infill(request.unsqueeze(0), generator=[chance], on_step=on_step)
    return states


def test_chunks_come_in_any_order_from_anyone_and_a_run_that_was_cut_off_goes_on(tmp_path, recorder):
    folders = [RecordingFolder(tmp_path / name, {"seed": 3}) for name in ("whole", "pieces")]
    for folder in folders:
        folder.begin(fresh=False)
    run(folders[0], recorder, recorder.chunks)
    folders[0].finish(recorder)

    shuffled = random.Random(0).sample(recorder.chunks, len(recorder.chunks))
    run(folders[1], recorder, shuffled[:2])
    again = RecordingFolder(tmp_path / "pieces", {"seed": 3})  # another process, later
    again.require_own()
    again.begin(fresh=False)
    assert [again.has(chunk) for chunk in shuffled] == [True, True] + [False] * (len(shuffled) - 2)
    assert not again.is_finished
    run(again, recorder, shuffled)
    again.finish(recorder)
    for name in (TRAIN_FILE, HELD_OUT_FILE, "recording.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes()
    assert again.is_finished
    assert sorted(one.name for one in (tmp_path / "pieces").iterdir()) == [HELD_OUT_FILE, "recording.json", TRAIN_FILE]


def test_runs_that_go_wrong_are_kept_densely_and_the_last_rows_of_each_source_apart(tmp_path, model):
    rows = make_rows(16)
    folder = RecordingFolder(tmp_path / "states", {})
    recorder = Recorder(model, rows, RECORDING)
    folder.begin(fresh=False)
    run(folder, recorder, recorder.chunks)
    counts = [recorder.record(chunk) for chunk in recorder.chunks]
    folder.finish(recorder)
    clean = [tuple(ids) for ids in rows["input_ids"]]
    training, held_out = (
        {clean.index(tuple(row["input_ids"])) for row in read(folder.path / name)} for name in (TRAIN_FILE, HELD_OUT_FILE)
    )
    assert held_out == {6, 7, 14, 15}
    assert training <= set(range(6)) | set(range(8, 14))
    assert sum(right for _, right in counts) == sum(one["right"] for one in folder.found["sources"])
    for chunk, (kept, _) in zip(recorder.chunks, counts, strict=True):
        source = SOURCES[chunk.source]
        for number, (looks, is_right) in filled(model, source, recorder, chunk).items():
            assert kept.number.count(number) == min(looks, source.of_right if is_right else source.of_wrong)
    row = read(folder.path / TRAIN_FILE)[0]
    assert set(row) == {"input_ids", "maskable", "draft_ids", "age", "commit_confidence", "times_remasked"}
    prepared = prepare_rows(read(folder.path / TRAIN_FILE), mask_token_id=MASK)
    assert "draft_ids" in prepared.column_names


def filled(model, source, recorder, chunk):
    """How many looks each row of a chunk takes, and whether it ends right."""
    sampler = RemaskingSampler.from_preset(source.preset, model, num_steps=source.num_steps, **source.settings)
    found = {}
    for batch, ids, mask in recorder._requests(chunk):
        numbers = batch["example_id"].tolist()
        chance = [torch.Generator().manual_seed(3 * 1_000_003 + number) for number in numbers]
        output = sampler.infill(ids, mask, generator=chance)
        is_right = ((output.sequences == batch["input_ids"]) | ~batch["maskable"]).all(-1)
        found |= dict(zip(numbers, zip(output.num_forward_passes.tolist(), is_right.tolist(), strict=True), strict=True))
    return found


def test_a_state_is_moved_with_its_answer_and_its_history(tmp_path):
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=11, max_position_embeddings=81)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=0))
    grids = sudoku_grids.complete_grids(4, seed=0)
    raw = [{"input_ids": grid.tolist(), "maskable": [True] * 40 + [False] * 41} for grid in grids]
    rows = prepare_rows(raw, mask_token_id=0)
    source = Source(preset="random", num_steps=3, of_right=2, of_wrong=2)
    recorder = Recorder(model, rows, Recording(sources=(source,), symmetries=True), Sudoku())
    states, _ = recorder.record(recorder.chunks[0])
    columns = recorder.finished(states)
    assert not torch.equal(columns["input_ids"][0], columns["input_ids"][1])  # two states of one row
    for clean, maskable, draft, age in zip(
        *(columns[name] for name in ("input_ids", "maskable", "draft_ids", "age")), strict=True
    ):
        assert (clean[torch.as_tensor(sudoku_grids.CELLS_OF_UNIT)].sort(-1).values == torch.arange(1, 10)).all()
        assert (draft == clean)[~maskable].all()
        assert ((age >= 0) == (maskable & (draft != 0))).all()
    with pytest.raises(ConfigurationError, match="`symmetries` needs a task that has some"):
        Recorder(model, rows, Recording(sources=(source,), symmetries=True))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sources": (replace(SOURCES[0], share=0.4), SOURCES[1])}, ConfigurationError, "must make 1, found 0.9"),
        ({"masked": 0.0}, ConfigurationError, "`masked` must be a share"),
        ({"held_out": 1.0}, ConfigurationError, "`held_out` must be a share"),
        ({"held_out": 0.01}, ConfigurationError, "gets 8 of 16 rows, of which a share of 0.01 is held out"),
        (
            {"sources": (Source(preset="prism", num_steps=3, settings={"pace": 1}),)},
            UnknownKeyError,
            "source 1: The preset 'prism' has no 'pace'",
        ),
        (
            {"sources": (Source(preset="best_of", num_steps=6),)},
            ConfigurationError,
            "states are recorded of one run of each row, but `trajectory` of 'best_of' is BestOfN",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_any_look(model, change, error, words):
    with pytest.raises(error, match=words):
        Recorder(model, make_rows(16), replace(RECORDING, **change))


def test_rows_that_say_nothing_of_their_answer_are_refused_before_any_look(model):
    rows = prepare_rows([{"text": "abcd"}, {"text": "bcda"}], model.tokenizer, mask_token_id=MASK)
    with pytest.raises(DataFormatError, match="with all of it masked, nothing says which tokens are right"):
        Recorder(model, rows, Recording(sources=(Source(preset="confidence", num_steps=3),)))


def test_another_recording_and_files_of_others_stay(tmp_path, recorder):
    mine = RecordingFolder(tmp_path / "states", {"seed": 3, "sources": [{"preset": "prism"}]})
    mine.begin(fresh=False)
    with pytest.raises(ConfigurationError, match="holds another recording, which differs in seed"):
        RecordingFolder(tmp_path / "states", {"seed": 4, "sources": [{"preset": "prism"}]}).require_own()
    (tmp_path / "killed" / "chunks").mkdir(parents=True)  # by a process that was killed at its beginning
    (tmp_path / "killed" / f".recording.json-{32 * 'a'}").write_text("{")
    (tmp_path / "killed" / f".states.parquet-{32 * 'b'}").write_text("")
    killed = RecordingFolder(tmp_path / "killed", {})
    with pytest.raises(ConfigurationError, match="files of something else"):
        killed.require_own()  # the states are written when the recording is known
    (tmp_path / "killed" / f".states.parquet-{32 * 'b'}").unlink()
    killed.require_own()
    killed.begin(fresh=False)
    (tmp_path / "killed" / f".states.parquet-{32 * 'b'}").write_text("")
    run(killed, recorder, recorder.chunks)
    killed.finish(recorder)
    assert sorted(one.name for one in killed.path.iterdir()) == [HELD_OUT_FILE, "recording.json", TRAIN_FILE]
    (tmp_path / "killed" / "recording.json").write_text('{"asked": 5}')
    with pytest.raises(ConfigurationError, match="cannot be read as a recording's; start over with --fresh"):
        killed.require_own()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("...")
    for fresh in (False, True):
        with pytest.raises(ConfigurationError, match=r"holds files of something else and no recording\.json"):
            RecordingFolder(tmp_path / "other", {}).require_own(fresh=fresh)


def test_every_row_goes_to_one_source():
    chunks = split_into_chunks(RECORDING, 17)
    assert [number for chunk in chunks for number in range(chunk.begin, chunk.end)] == list(range(17))
    assert {(chunk.source, chunk.first, chunk.last) for chunk in chunks} == {(0, 0, 8), (1, 8, 17)}
