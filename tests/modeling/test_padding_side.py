"""A row says the same alone, and padded on either side, with anything in the padding: whoever calls, and whatever it asks."""

import pytest
import torch
from moved_weights import trained

from prism_plugin.backbones import BackboneSpec, register_backbone
from prism_plugin.data import PrismCollator
from prism_plugin.errors import DataFormatError
from prism_plugin.evaluation.quality import judge_drafts
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.modeling.texts import pad_token_id
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone
from prism_plugin.training import get_objective

ROWS = ([5, 6, 31, 7], [8, 9, 10, 31, 31, 11, 12], [13])


def padded(side, pad, rows=ROWS):
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[number, columns], mask[number, columns] = torch.tensor(row), True
    return ids, mask


def build(family="bert"):
    return trained(attach_quality_head(tiny_backbone(family), PrismConfig(mask_token_id=31))).eval()


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "llama", "shifted"])
def test_one_forward(monkeypatch, family):
    if family == "shifted":
        monkeypatch.setattr("prism_plugin.backbones.spec._SPECS", {})
        register_backbone(BackboneSpec("bert", "cls", ("query",), logits_alignment="next_token"))
        family = "bert"
    model = build(family)
    for side in ("left", "right"):
        ids, mask = padded(side, 3)
        wanted = mask & (torch.arange(mask.shape[1]) % 3 != 1)
        by_mask = model(ids, mask, logits_at=wanted, output_hidden_states=True)
        by_index = model(ids, mask.long(), logits_at=(wanted | ~mask).flatten().nonzero().squeeze(-1))
        for number, row in enumerate(ROWS):
            alone = model(torch.tensor([row]), logits_at=wanted[number][mask[number]].unsqueeze(0), output_hidden_states=True)
            for name in ("quality_logits", "hidden_states"):
                torch.testing.assert_close(getattr(by_mask, name)[number][mask[number]], getattr(alone, name)[0])
            rows_before = wanted[:number].sum()
            mine = by_mask.logits[rows_before : rows_before + wanted[number].sum()]
            torch.testing.assert_close(mine, alone.logits)
        among = wanted.flatten()[(wanted | ~mask).flatten()]
        torch.testing.assert_close(by_index.logits[among], by_mask.logits)


def test_scores(lora_model):
    texts = ["abc def", "hi", "x"]
    alone = [lora_model.score([text])[0] for text in texts]
    for side in ("left", "right"):
        lora_model.tokenizer.padding_side = side
        encoded = lora_model.tokenizer(texts, padding=True, return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        for scores in (lora_model.score(texts), lora_model.score(encoded), lora_model.score(ids.where(mask, -100), mask)):
            assert (scores[~mask] == 0).all()
            torch.testing.assert_close(scores[mask], torch.cat(alone))


@pytest.mark.parametrize("pad", [3, 31, -100, 10**6])
def test_samples(pad):
    sampler = RemaskingSampler.from_preset("prism-confidence", build(), num_steps=3)
    rows = ([5, 6, 7], [8, 9, 10, 11, 12], [13])
    expected = [sampler.sample(torch.tensor([row]), max_new_tokens=3).sequences[0, -3:].tolist() for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(side, pad, rows)
        if pad == 31:  # a prompt with masks is refused, wherever they are
            ids = ids.where(mask, 3)
        output = sampler.sample(ids, mask, max_new_tokens=3)
        assert output.sequences[:, -3:].tolist() == expected
        assert torch.equal(output.sequences[:, :5], ids)


def test_a_training_step():
    model, losses = build(), []
    for side in ("left", "right"):
        ids, mask = padded(side, 3, ROWS[:2])
        drafts = torch.where(ids == 31, 4, ids)
        rows = [
            {
                "example_id": number,
                "input_ids": ids[number],
                "draft_ids": drafts[number],
                "attention_mask": mask[number],
                "maskable": mask[number],
            }
            for number in range(2)
        ]
        batch = PrismCollator(pad_token_id=0)(rows)
        losses.append(get_objective("prism_recorded").step(model, batch, epoch=0, seed=0, unwrapped=model).loss)
    torch.testing.assert_close(*losses)


def test_padding_that_rows_bring_is_refused_where_it_would_be_seen(monkeypatch):
    monkeypatch.setattr("prism_plugin.backbones.spec._SPECS", {})
    register_backbone(BackboneSpec("bert", "cls", ("query",), attention_mask="none"))
    row = {"example_id": 0, "input_ids": [5, 6, 3], "maskable": [1, 1, 0], "attention_mask": [1, 1, 0]}
    with pytest.raises(DataFormatError, match=r"takes no attention mask, .* found rows of 2 and of 3 tokens"):
        judge_drafts(build(), get_objective("prism", num_drafted=1), [row])


def test_padding_never_asks_to_be_filled():
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=0))  # as its config says of padding
    assert pad_token_id(model) == 1
    assert RemaskingSampler(model, num_steps=2).fill_id == 1
