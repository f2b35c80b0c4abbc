"""What is judged, and with which numbers, against slow walks over traces and drafts."""

from dataclasses import replace

import pytest
import torch
from listening import MASK, build_model, make_rows

from prism_plugin.core import DraftRule
from prism_plugin.data import PrismCollator, prepare_rows
from prism_plugin.errors import ConfigurationError, DataFormatError, SamplingError
from prism_plugin.evaluation.quality import SCORES, judge_drafts, judge_states
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_tokenizer
from prism_plugin.training import get_objective
from prism_plugin.training.trainer import EVALUATION_EPOCH

OBJECTIVE = get_objective(
    "prism", drafts=(DraftRule(num_drafted=3, num_looks=2), DraftRule(num_drafted=2)), num_drafts=2, t_min=0.4
)


@pytest.fixture(scope="module")
def model():
    return build_model()


def sampler_of(model, preset="prism", num_steps=6, **settings):
    return RemaskingSampler.from_preset(preset, model, num_steps=num_steps, **settings)


def listed(judged):
    """The tokens as rows of numbers, in an order that does not depend on the batches; states are told apart by row and step."""
    names = [name for name in SCORES if name in judged.scores]
    steps = judged.masked_share if judged.step is None else judged.step
    rows = zip(
        judged.row.tolist(), steps.tolist(), judged.correct.tolist(), judged.masked_share.tolist(),
        *(judged.scores[name].tolist() for name in names), strict=True,
    )  # fmt: skip
    return sorted(rows)


def assert_close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)  # one row and a batch of them are rounded otherwise, by up to 1e-5


@torch.no_grad()
def look(model, ids, forbidden):
    """Probabilities of every token and quality at every position, of one row."""
    output = model(ids.unsqueeze(0), logits_at=torch.ones(1, len(ids), dtype=torch.bool))
    logits = output.logits.clone()
    logits[:, forbidden] = -torch.inf
    return logits.softmax(-1), output.quality_logits[0].sigmoid()


def walk(sampler, row, seed):
    """Judge a row at every look of the plain sampler, with loops."""
    clean, maskable = torch.tensor(row["input_ids"]), torch.tensor(row["maskable"])
    generator = [torch.Generator().manual_seed(seed * 1_000_003 + row["example_id"])]
    asked = torch.where(maskable, MASK, clean).unsqueeze(0)
    expected, history, qualities = [], {}, {}
    for record in sampler.infill(asked, generator=generator, return_trace=True).trace:
        before = record.tokens_before[0]
        probabilities, quality = look(sampler.model, before, [MASK, 0])  # a sampler writes no padding
        share = (before == MASK).sum().item() / maskable.sum().item()
        for position in maskable.nonzero().flatten().tolist():
            token = before[position].item()
            if token != MASK:
                history[position].append(probabilities[position, token].item())
                qualities[position].append(quality[position].item())
                mean, mean_quality = (sum(one[position]) / len(one[position]) for one in (history, qualities))
                confidence = (history[position][-1], history[position][0], mean)
                scores = (qualities[position][-1], mean_quality, *confidence, len(qualities[position]) / record.step)
                expected.append((row["example_id"], record.step, token == clean[position].item(), share, *scores))
            if record.unmasked[0, position]:
                history[position], qualities[position] = [record.confidence[0, position].item()], []
    return expected


@pytest.mark.parametrize(("preset", "settings"), [("prism", {"num_remask": 2}), ("confidence", {}), ("prism-refine", {})])
def test_states_are_those_of_the_plain_sampler(model, preset, settings):
    rows, sampler = make_rows(5), sampler_of(model, preset, **settings)
    judged = judge_states(sampler, rows, batch_size=2, seed=3)
    expected = sorted(one for row in rows for one in walk(sampler, row, seed=3))
    assert len({one[:2] for one in expected}) == judged.state.unique().numel()
    assert_close(listed(judged), expected)


def test_drafts_are_the_objectives(model):
    rows = make_rows(6)
    judged = judge_drafts(model, OBJECTIVE, rows, batch_size=4, seed=1)
    expected = []
    for row in rows:
        batch = PrismCollator(pad_token_id=0)([row])
        step = OBJECTIVE.step(model, batch, epoch=EVALUATION_EPOCH, seed=1, unwrapped=model)
        for ids, drafted, commit in zip(step.draft.ids, step.draft.drafted, step.draft.history.commit_confidence, strict=True):
            probabilities, quality = look(model, ids, [MASK])
            share = (ids == MASK).sum().item() / sum(row["maskable"])
            for position in drafted.nonzero().flatten().tolist():
                now, then = probabilities[position, ids[position]].item(), commit[position].item()
                right = ids[position].item() == row["input_ids"][position]
                scores = (quality[position].item(), now, then, (now + then) / 2)
                expected.append((row["example_id"], share, right, share, *scores))
    assert judged.step is None
    assert 0 < judged.correct.sum() < len(judged.correct)
    assert_close(listed(judged), sorted(expected))


def test_recorded_drafts_are_judged_as_they_are(model):
    plain = make_rows(6)
    canvases = []
    for row in plain:
        ids = torch.tensor(row["input_ids"])
        places = torch.tensor(row["maskable"]).nonzero().flatten()
        ids[places[::2]] = torch.where(ids[places[::2]] == 3, 4, 3)
        ids[places[1::3]] = MASK
        canvases.append(ids.tolist())
    rows = plain.add_column("draft_ids", canvases)
    judged = judge_drafts(model, get_objective("prism_recorded"), rows, batch_size=4)
    assert set(judged.scores) == {"quality", "visible_confidence"}
    expected = []
    for row in rows:
        ids = torch.tensor(row["draft_ids"])
        probabilities, quality = look(model, ids, [MASK])
        share = (ids == MASK).sum().item() / sum(row["maskable"])
        for position, may in enumerate(row["maskable"]):
            token = ids[position].item()
            if may and token != MASK:
                scores = (quality[position].item(), probabilities[position, token].item())
                expected.append((row["example_id"], share, token == row["input_ids"][position], share, *scores))
    assert 0 < judged.correct.sum() < len(judged.correct)
    assert_close(listed(judged), sorted(expected))
    with pytest.raises(DataFormatError, match=r"`rows` has recorded drafts, .* which the objective `prism` would"):
        judge_drafts(model, OBJECTIVE, rows)
    with pytest.raises(DataFormatError, match=r"`prism_recorded` learns from recorded drafts, .* but `rows` has none"):
        judge_drafts(model, get_objective("prism_recorded"), plain)
    with pytest.raises(DataFormatError, match=r"The rows have recorded drafts \(`draft_ids`\), which a sampler that starts"):
        judge_states(sampler_of(model), rows)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_change_nothing(model, batch_size):
    rows, sampler = make_rows(7), sampler_of(model, num_remask=2)
    assert_close(listed(judge_states(sampler, rows, batch_size=batch_size)), listed(judge_states(sampler, rows, batch_size=2)))
    drafts = [listed(judge_drafts(model, OBJECTIVE, rows, batch_size=size)) for size in (batch_size, 2)]
    assert_close(*drafts)


def test_rows_of_one_length_go_together_where_there_is_no_attention_mask(model, monkeypatch):
    expected = listed(judge_states(sampler_of(model), make_rows(7), batch_size=3))
    monkeypatch.setattr(model, "spec", replace(model.spec, attention_mask="none"))
    assert_close(listed(judge_states(sampler_of(model), make_rows(7), batch_size=3)), expected)


def test_a_share_of_the_tokens_is_given(model):
    rows = make_rows(4)
    judged = judge_states(sampler_of(model, num_steps=20), rows, masked=0.5)
    asked = [round(0.5 * sum(row["maskable"])) / sum(row["maskable"]) for row in rows]
    assert max(judged.masked_share.tolist()) < max(asked)
    least = judge_states(sampler_of(model, num_steps=20, preset="prism-refine"), make_rows(4), masked=1e-6)
    assert least.masked_share.max() == 0  # one token each: seen where it was written, and nothing else was masked


def test_progress_is_told(model):
    seen = []
    judge_drafts(model, OBJECTIVE, make_rows(5), batch_size=2, on_batch=lambda: seen.append("batch"))
    judge_states(sampler_of(model, "confidence", num_steps=3), make_rows(5), batch_size=5, on_look=lambda: seen.append("look"))
    assert seen == ["batch"] * 3 + ["look"] * 3


def test_a_mask_token_of_id_0_is_no_padding():
    model = build_model()
    swapped = replace(model.prism_config, mask_token_id=0)
    model.prism_config, model.tokenizer = swapped, None
    rows = prepare_rows([{"input_ids": [3, 4, 5, 6, 3]}, {"input_ids": [4, 5, 6, 3, 4, 5]}], mask_token_id=0)
    judged = judge_states(sampler_of(model), rows, masked=0.6, batch_size=2)
    assert judged.row.unique().tolist() == [0, 1]


def test_what_cannot_be_judged_is_refused_in_one_sentence(model):
    text = prepare_rows([{"text": "abcd"}], tiny_tokenizer(), mask_token_id=MASK)
    with pytest.raises(
        DataFormatError, match="`rows\\[0\\]`: with all of it masked, nothing says which tokens are right; mask a"
    ):
        judge_states(sampler_of(model), text)
    assert judge_states(sampler_of(model), text, masked=0.5).correct.numel()
    with pytest.raises(SamplingError, match="showed no revealed token in any of its 2 looks, so nothing could be judged; give"):
        judge_states(sampler_of(model, "confidence", num_steps=1), make_rows(2))
    for judge in (lambda rows: judge_states(sampler_of(model), rows), lambda rows: judge_drafts(model, OBJECTIVE, rows)):
        with pytest.raises(DataFormatError, match=r"`rows` must be a list of rows, .* found dict"):
            judge(text[:1])
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match=r"`masked` must be a share in \(0, 1\], got"):
            judge_states(sampler_of(model), text, masked=share)
    with pytest.raises(DataFormatError, match="No draft of the 2 rows filled a token, so nothing could be judged; give longer"):
        judge_drafts(model, get_objective("prism", t_min=1e-6, t_max=2e-6), make_rows(2))


def test_judging_computes_no_logits_for_a_loss(model):
    """An objective with a term of the language model is judged with as many rows of the LM head as one without."""
    counts = []
    for terms in (OBJECTIVE.terms, OBJECTIVE.on("draft")):
        seen = []

        def note(_module, _args, given, seen=seen):
            seen.append(0 if given["logits_at"] is None else given["logits_at"].numel())

        hook = model.register_forward_pre_hook(note, with_kwargs=True)
        judge_drafts(model, replace(OBJECTIVE, terms=terms, name=None), make_rows(6), batch_size=3)
        hook.remove()
        counts.append(seen)
    assert counts[0] == counts[1]
    assert sum(counts[0]) > 0
