"""Looks other than the plain one, each against a slow account of what it is."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from sampling.small_samplers import MASK, build_model, generators, prompts
from transformers import BertConfig, BertForMaskedLM

from prism_plugin.core import (
    BelowRemasking,
    CorrectedEditing,
    EvenSchedule,
    LoopSchedule,
    QualityRemasking,
    RandomUnmasking,
    RemediDecider,
    SwapEditing,
    ThresholdEditing,
    ThresholdUnmasking,
    WinoDecider,
)
from prism_plugin.decoding import CorrectedLook, CriticLook, GuidedLook, LeftOutLook, ShadowLook, SoftLook
from prism_plugin.errors import ConfigurationError, UnknownNameError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.modeling.shadows import require_shadows
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone


@pytest.fixture(scope="module")
def model():
    return build_model()


@torch.no_grad()
def logits_of(model, tokens, attention_mask=None, **more):
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    rows = model(tokens, attention_mask, logits_at=everywhere, with_quality=False, **more).logits.float()
    rows[:, MASK] = -torch.inf
    return rows.view(*tokens.shape, -1)


def traced(sampler, ids, new, seed=0):
    seeds = range(seed, seed + len(ids))
    return sampler.sample(ids, max_new_tokens=new, generator=generators(*seeds), return_trace=True)


def test_a_guided_look_goes_away_from_what_no_prompt_would_give(model):
    ids, scale = prompts(2, 5), 1.5
    sampler = RemaskingSampler(
        model, num_steps=6, look=GuidedLook(scale), remasking=QualityRemasking(), schedule=EvenSchedule(1)
    )
    output = traced(sampler, ids, 6)
    assert output.num_forward_passes.tolist() == [2 * len(output.trace)] * 2
    for record in output.trace:
        tokens = record.tokens_before
        without = torch.cat((torch.full_like(ids, MASK), tokens[:, 5:]), dim=1)
        rows = logits_of(model, without) + (scale + 1) * (logits_of(model, tokens) - logits_of(model, without))
        rows[..., MASK] = -torch.inf
        best = rows.softmax(-1).max(-1)
        masked = record.unmasked
        assert torch.equal(record.tokens_after[masked], best.indices[masked])
        torch.testing.assert_close(record.confidence[masked], best.values[masked], atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            quality = model(tokens).quality_logits.sigmoid()
        seen = ~record.quality.isnan()
        torch.testing.assert_close(record.quality[seen], quality[seen])


def test_a_soft_look_reads_what_the_one_before_said(model):
    ids, look = prompts(2, 4), SoftLook(mix=0.6, top_k=2)
    sampler = RemaskingSampler(model, num_steps=5, look=look, remasking=QualityRemasking(), schedule=EvenSchedule(1))
    embed, before = model.get_input_embeddings(), None
    for record in traced(sampler, ids, 6).trace:
        tokens = record.tokens_before
        mixed = embed(tokens).detach().clone()
        for row in range(2):
            for place in range(4, 10):
                if before is None or tokens[row, place] != MASK or before[1][row, place] != MASK:
                    continue  # what was taken back at the look before is a plain mask
                p = before[0][row, place].softmax(-1)
                entropy = -(p * p.clamp(min=1e-30).log()).sum()
                amount = 0.6 * (1 - entropy / torch.log(torch.tensor(32.0)))
                best = p.topk(2)
                words = (best.values.unsqueeze(-1) * embed(best.indices)).sum(0) / best.values.sum()
                mixed[row, place] = (1 - amount) * embed(torch.tensor(MASK)) + amount * words
        with torch.no_grad():
            rows = model.plain_backbone(inputs_embeds=mixed).logits.float()
        rows[..., MASK] = -torch.inf
        best = rows.softmax(-1).max(-1)
        masked = record.unmasked
        torch.testing.assert_close(record.confidence[masked], best.values[masked], atol=1e-5, rtol=1e-4)
        assert torch.equal(record.tokens_after[masked], best.indices[masked])
        before = rows, tokens


def fixed_point(model, tokens, reach, most):
    """Rewrite a row until it stands: the last logits, and how many forwards that took."""
    draft = torch.where(tokens == MASK, logits_of(model, tokens.unsqueeze(0))[0].argmax(-1), tokens)
    number = 0
    while number < most:
        number += 1
        logits = logits_of(model, draft.unsqueeze(0))[0]
        rewritten = torch.where(reach, logits.argmax(-1), draft)
        if torch.equal(rewritten, draft):
            break
        draft = rewritten
    return logits, number


@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize(("every", "most"), [(1, 1), (2, 4), (3, 2)])
def test_a_corrected_look_rewrites_until_the_draft_stands(model, block_length, every, most):
    look, size = CorrectedLook(every, most), block_length or 9
    sampler = RemaskingSampler(model, num_steps=9, block_length=block_length, look=look, editing=CorrectedEditing())
    request = torch.cat((prompts(3, 4), torch.full((3, 9), MASK)), dim=1)
    canvas = sampler.lay_infill(request)
    loop = sampler.loop(canvas)
    state, edits, corrected, looks = loop.begin(canvas), 0, 0, [(-1, 0)] * 3
    while (step := loop.advance(state)) is not None:
        for number, row in enumerate(step.rows.tolist()):
            tokens, after, block = step.before.tokens[number], step.state.tokens[row], int(step.before.block[number])
            looks[row] = block, looks[row][1] + 1 if looks[row][0] == block else 1
            forwards = int(step.state.num_forward_passes[row] - state.num_forward_passes[row])
            reach = (torch.arange(13) >= 4) & (torch.arange(13) < 4 + (block + 1) * size)
            logits, expected = logits_of(model, tokens.unsqueeze(0))[0], 0
            if looks[row][1] % every == 0:
                logits, expected = fixed_point(model, tokens, reach, most)
                stood = reach & (tokens != MASK)
                assert torch.equal(after[stood], logits.argmax(-1)[stood])
                edits, corrected = edits + int((after[stood] != tokens[stood]).sum()), corrected + 1
            assert forwards == 1 + expected
            filled = step.decision.write[number] & (tokens == MASK)
            assert torch.equal(after[filled], logits.argmax(-1)[filled])
        state = step.state
    assert corrected > 3
    assert edits > 0
    assert not (loop.finish(state).tokens == MASK).any()


def test_a_corrected_look_of_one_row_is_that_of_the_row_alone(model):
    sampler = RemaskingSampler.from_preset("proseco", model, num_steps=6, threshold=0.2)
    ids = prompts(4, 4, seed=3)
    together = sampler.sample(ids, max_new_tokens=7)
    for row in range(4):
        alone = sampler.sample(ids[row : row + 1], max_new_tokens=7)
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert alone.num_forward_passes[0] == together.num_forward_passes[row]


@pytest.mark.parametrize("rule", [CorrectedEditing, partial(ThresholdEditing, 0.1), partial(SwapEditing, 3)], ids=str)
def test_only_doubted_tokens_are_overwritten_where_a_quality_says_so(model, rule):
    look = CorrectedLook(1) if rule is CorrectedEditing else None
    rules = {"look": look, "schedule": LoopSchedule(0, 0.5)}
    doubtful = RemaskingSampler(model, num_steps=18, editing=rule(quality_below=0.5), **rules)
    overwritten = 0
    for record in traced(doubtful, prompts(3, 4), 9).trace:
        changed = record.unmasked & (record.tokens_before != MASK)
        assert (record.quality[changed] < 0.5).all()
        overwritten += int(changed.sum())
    assert overwritten > 0
    never = replace(doubtful, editing=rule(quality_below=0.0))
    assert not any((one.unmasked & (one.tokens_before != MASK)).any() for one in traced(never, prompts(3, 4), 9).trace)


@torch.no_grad()
def test_a_shadow_sees_all_but_its_token(model):
    """With one shadow of a row of three tokens: what a mask of its own says, if the rest did not see the token."""
    sampler = RemaskingSampler(model, num_steps=8, decider=WinoDecider(0.1, 0.5), look=ShadowLook(), schedule=EvenSchedule(9))
    ids, seen = prompts(2, 4), 0
    bert = model.plain_backbone
    for record in traced(sampler, ids, 6).trace:
        tokens, length = record.tokens_before, 10
        both = torch.cat((tokens, torch.full((2, 6), MASK)), dim=1)
        allowed = torch.ones(16, 16, dtype=torch.bool)
        allowed[:length, length:] = False
        for number in range(6):
            allowed[length + number, 4 + number] = False
        positions = torch.cat((torch.arange(length), torch.arange(4, length))).expand(2, -1)
        rows = bert(both, attention_mask=allowed.expand(2, 1, 16, 16), position_ids=positions).logits.float()
        rows[..., MASK] = -torch.inf
        p = rows.softmax(-1)
        for row in range(2):
            for number in range(6):
                token = tokens[row, 4 + number]
                if token != MASK:
                    expected = p[row, length + number, token]
                    assert record.scores["shadow_confidence"][row, 4 + number] == pytest.approx(float(expected), rel=1e-4)
                    seen += 1
        plain = logits_of(model, tokens).softmax(-1).max(-1)
        torch.testing.assert_close(record.confidence[record.unmasked], plain.values[record.unmasked], atol=1e-5, rtol=1e-4)
    assert seen > 6


def test_wino_keeps_to_its_bounds(model):
    """Fewer are taken back than the look before wrote, and none where one is written; worst first."""
    sampler = RemaskingSampler(
        model, num_steps=40, decider=WinoDecider(0.05, 0.9), look=ShadowLook(), schedule=EvenSchedule(99)
    )
    trace, taken = traced(sampler, prompts(3, 4), 12).trace, 0
    for before, record in zip((None, *trace), trace, strict=False):
        for row in record.looked.nonzero().flatten().tolist():
            back, written = int(record.remasked[row].sum()), int(record.unmasked[row].sum())
            shadow = record.scores["shadow_confidence"][row]
            assert back == 0 or (written > 1 and back < int(before.unmasked[row].sum()))
            if back:
                assert shadow[record.remasked[row]].max() < 0.9
                kept = ~record.remasked[row] & ~shadow.isnan()
                assert not kept.any() or shadow[kept].min() >= shadow[record.remasked[row]].max()
            taken += back
    assert taken > 3


def test_shadows_are_refused_where_a_token_would_see_them(model):
    require_shadows(model)
    no_positions = attach_quality_head(tiny_backbone("roformer"), PrismConfig(mask_token_id=MASK))
    with pytest.raises(ConfigurationError, match=r"whose forward takes `position_ids`.*RoFormerForMaskedLM does not"):
        RemaskingSampler.from_preset("wino", no_positions, num_steps=4)

    class Leaking(BertForMaskedLM):
        def forward(self, input_ids, attention_mask=None, position_ids=None, **more):
            pairs = attention_mask is not None and attention_mask.ndim == 4
            return super().forward(input_ids, None if pairs else attention_mask, position_ids=position_ids, **more)

    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, initializer_range=0.5
    )
    leaking = attach_quality_head(Leaking(config).eval(), PrismConfig(mask_token_id=MASK))
    with pytest.raises(ConfigurationError, match=r"the logits of Leaking differ by .*% beside one; choose another look"):
        require_shadows(leaking)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"decider": WinoDecider()},
            "WinoDecider reads what another look gives, but `look` is PlainLook; give `look=ShadowLook",
        ),
        (
            {"editing": CorrectedEditing()},
            "CorrectedEditing reads what another look gives, but `look` is PlainLook; give `look=C",
        ),
        ({"look": ShadowLook()}, "`look` is ShadowLook, but nothing reads what it gives besides.*such as `WinoDecider"),
        ({"look": CorrectedLook()}, "`look` is CorrectedLook, but nothing reads what it gives.*`editing=CorrectedEditing"),
        ({"look": GuidedLook}, "`look` must be a rule to call"),
        (
            {"look": CorrectedLook(), "editing": CorrectedEditing(), "unmasking": ThresholdUnmasking(0.5), "top_p": 0.5},
            "`top_p`",
        ),
    ],
)
def test_looks_and_readers_go_together(model, settings, message):
    schedule = EvenSchedule(1) if "decider" in settings else EvenSchedule()
    with pytest.raises(ConfigurationError, match=message):
        RemaskingSampler(model, num_steps=4, schedule=schedule, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidedLook(0), "`scale` of GuidedLook must be a number above 0, found 0"),
        (lambda: CorrectedLook(0), "`every` of CorrectedLook must be an integer of at least 1, found 0"),
        (lambda: CorrectedLook(1, 0), "`most` of CorrectedLook must be an integer of at least 1, found 0"),
        (lambda: LeftOutLook(0), "`num_parts` of LeftOutLook must be an integer of at least 1"),
        (lambda: LeftOutLook(1, 0), "`every` of LeftOutLook must be an integer of at least 1"),
        (lambda: SoftLook(mix=0), "`mix` of SoftLook must be a share in"),
        (lambda: SoftLook(top_k=0), "`top_k` of SoftLook must be an integer of at least 1"),
        (lambda: CorrectedEditing(quality_below=2), "`quality_below` of CorrectedEditing must be a probability"),
        (lambda: ThresholdEditing(0.5, quality_below=-1), "`quality_below` of ThresholdEditing must be a probability"),
        (lambda: ThresholdEditing(0.5, "all"), "`blocks` of ThresholdEditing must be one of active, begun"),
        (lambda: SwapEditing(0), "`num_swaps` of SwapEditing must be an integer of at least 1"),
        (lambda: BelowRemasking(0.5, "quality", 2), "`quality_below` of BelowRemasking must be a probability"),
        (lambda: WinoDecider(2), "`threshold` of WinoDecider must be a probability"),
        (lambda: WinoDecider(0.5, -1), "`verify` of WinoDecider must be a probability"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@torch.no_grad()
@pytest.mark.parametrize("parts", [1, 3, 99])
def test_each_token_is_asked_for_while_it_is_hidden(model, parts):
    rules = {
        "remasking": BelowRemasking(0.2, "context_confidence"),
        "schedule": EvenSchedule(9),
        "unmasking": RandomUnmasking(),
    }
    sampler = RemaskingSampler(model, num_steps=9, look=LeftOutLook(parts, 2), temperature=1.0, **rules)
    taken, checks = 0, 0
    for number, record in enumerate(traced(sampler, prompts(3, 4), 7).trace):
        for row in range(3):
            tokens = record.tokens_before[row]
            stood = [place for place in range(4, 11) if tokens[place] != MASK]
            used = min(parts, len(stood)) if number % 2 else 0
            assert int(record.num_forwards[row]) == 1 + used
            low = []
            for part in range(used):
                hidden = tokens.clone()
                hidden[stood[part::parts]] = MASK
                p = logits_of(model, hidden.unsqueeze(0))[0].softmax(-1)
                low += [place for place in stood[part::parts] if p[place, tokens[place]] < 0.2]
            back = record.remasked[row].nonzero().flatten().tolist()
            assert set(back) <= set(low)
            assert back or not low or number > 5
            taken, checks = taken + len(back), checks + used
    assert taken > 3
    assert checks > 3


def test_a_critic_judges_what_would_be_written(model):
    critic = build_model()
    with torch.no_grad():
        for parameter in critic.quality_head.parameters():
            parameter.mul_(-1)
    rules = {"decider": RemediDecider(), "schedule": EvenSchedule(9)}
    sampler = RemaskingSampler(model, num_steps=6, look=CriticLook(critic), **rules)
    output = traced(sampler, prompts(2, 4), 9)
    assert output.num_forward_passes.tolist() == [2 * len(output.trace)] * 2
    for number, record in enumerate(output.trace):
        tokens, target = record.tokens_before, -(-(number + 1) * 9 // 6)
        draft = torch.where(tokens == MASK, logits_of(model, tokens).argmax(-1), tokens)
        with torch.no_grad():
            quality = critic(draft).quality_logits.sigmoid()
        for row in range(2):
            kept = set((4 + quality[row, 4:].topk(target).indices).tolist())
            stands = set((4 + (record.tokens_after[row, 4:] != MASK).nonzero().flatten()).tolist())
            assert stands == kept
    with pytest.raises(UnknownNameError):
        sampler.to_dict()
    with pytest.raises(ConfigurationError, match="CriticLook judges the most probable tokens, so `temperature` must be 0"):
        RemaskingSampler(model, num_steps=6, look=CriticLook(critic), temperature=1.0, **rules)
    other = attach_quality_head(tiny_backbone(vocab_size=40), PrismConfig(mask_token_id=MASK))
    with pytest.raises(ConfigurationError, match=r"must read the tokens of the model that writes, of 32 .* but it has 40"):
        RemaskingSampler(model, num_steps=6, look=CriticLook(other), **rules)


def test_a_blind_rule_draws_where_it_writes_whatever_the_look(model):
    for look in (GuidedLook(1.0), SoftLook()):
        sampler = RemaskingSampler(model, num_steps=7, unmasking=RandomUnmasking(), temperature=1.0, look=look)
        output = sampler.sample(prompts(2, 4), max_new_tokens=7, generator=generators(0, 1))
        assert not (output.sequences == MASK).any()
