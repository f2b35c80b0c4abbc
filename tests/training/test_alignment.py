"""A model whose logits are about the next position, taken for one whose are about their own: the first batch shows it."""

import json
from dataclasses import replace

import pytest
import torch
from shifted import ROWS, trained_backbone
from torch.nn.functional import cross_entropy
from whole_state import differences, whole_state

import prism_plugin as prism
from prism_plugin.backbones import get_spec_by_model_type
from prism_plugin.backbones import spec as known_specs
from prism_plugin.backbones.alignment import judge_alignment_on_data
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling.alignment import fill_both_ways
from prism_plugin.testing import tiny_backbone

MASK = prism.PrismConfig(mask_token_id=31)


def trainer_of(backbone, folder, config=None, rows=ROWS, **arguments):
    model = prism.attach_quality_head(backbone, config or prism.PrismConfig(mask_token_id=31))
    objective = prism.get_objective("prism", num_drafted=2, diffusion_weight=0.0)
    arguments = prism.PrismTrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=8, save_strategy="no", use_cpu=True, disable_tqdm=True,
        report_to="none", **arguments,
    )  # fmt: skip
    return prism.PrismTrainer(model, arguments, objective=objective, train_dataset=rows)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shifted")
    trained_backbone(shifted=True).save_pretrained(folder)
    return folder


NEXT = prism.PrismConfig(mask_token_id=31, logits_alignment="next_token")


def test_a_shift_is_refused_on_the_first_batch(shifted, tmp_path):
    trainer = trainer_of(prism.load_backbone(shifted), tmp_path)
    head = {name: one.clone() for name, one in trainer.prism_model.quality_head.named_parameters()}
    words = (
        r"Logits of MistralForCausalLM are taken to be aligned as 'same_position', but as 'next_token' they fill the masks of "
        r"this data better, at \d\.\d\d nats a token against \d\.\d\d \(difference \d\.\d\d ± 0\.\d\d on \d+ tokens\); attach "
        r"it with `PrismConfig\(logits_alignment='next_token'\)`, in a recipe `attach.logits_alignment: next_token`, or"
    )
    with pytest.raises(BackboneError, match=words):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(one, head[name]) for name, one in trainer.prism_model.quality_head.named_parameters())


def test_said_so_it_trains_and_is_remembered(shifted, tmp_path):
    trainer = trainer_of(prism.load_backbone(shifted), tmp_path, NEXT)
    trainer.train()
    assert trainer.state.global_step == 2
    trainer.prism_model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "prism_config.json").read_text())["logits_alignment"] == "next_token"
    again = prism.PrismModel.from_pretrained(tmp_path / "adapter")
    assert again.spec.logits_alignment == "next_token"
    ids = torch.tensor([ROWS[0]["input_ids"][:6]])
    ids[0, 3] = 31
    logits = again(ids, logits_at=ids == 31).logits
    assert torch.equal(logits.argmax(-1), torch.tensor(ROWS[0]["input_ids"][3:4]))


def test_what_was_registered_is_remembered_where_nobody_registers_it(shifted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(known_specs._SPECS, "mistral", replace(get_spec_by_model_type("mistral"), logits_alignment="next_token"))
        prism.attach_quality_head(prism.load_backbone(shifted), MASK).save_pretrained(tmp_path)
    assert prism.PrismModel.from_pretrained(tmp_path).spec.logits_alignment == "next_token"


def test_what_the_family_has_is_not_written(tmp_path):
    prism.attach_quality_head(tiny_backbone("mistral"), MASK).save_pretrained(tmp_path)
    assert "logits_alignment" not in json.loads((tmp_path / "prism_config.json").read_text())


def test_an_alignment_is_one_of_two():
    with pytest.raises(ConfigurationError, match=r"must be 'same_position' or 'next_token', or None .*, found 'next'"):
        prism.PrismConfig(logits_alignment="next")


def test_a_shift_that_is_only_claimed_is_refused_too(tmp_path):
    with pytest.raises(BackboneError, match=r"aligned as 'next_token', but as 'same_position' .* `check_alignment: false`"):
        trainer_of(trained_backbone(shifted=False, steps=25), tmp_path, NEXT).train()


def test_it_can_be_taught_the_other_one(shifted, tmp_path):
    trainer = trainer_of(prism.load_backbone(shifted), tmp_path, check_alignment=False)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("steps", [0, 1])
def test_who_has_learnt_little_is_not_refused(steps, tmp_path):
    trainer = trainer_of(trained_backbone(shifted=True, steps=steps), tmp_path)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("alignment", ["same_position", "next_token"])
@pytest.mark.parametrize("family", ["bert", "albert", "gemma3_text", "gpt2"])
def test_who_has_learnt_nothing_is_not_refused(family, alignment):
    config = prism.PrismConfig(mask_token_id=31, logits_alignment=alignment)
    model = prism.attach_quality_head(tiny_backbone(family, hidden_size=32), config)
    repeating = torch.arange(16)[:, None] % 2 + torch.arange(24) // 3 % 3
    for ids in (batch()["input_ids"], 3 + repeating):
        assert judge_alignment_on_data(family, model.spec, fill_both_ways(model, batch(ids))).ok is not False


def batch(ids=None):
    ids = torch.tensor([row["input_ids"] for row in ROWS]) if ids is None else ids
    everywhere = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": everywhere, "maskable": everywhere == 1, "example_id": torch.arange(len(ids))}


def test_looking_leaves_the_model_as_it_was(shifted):
    model = prism.attach_quality_head(prism.load_backbone(shifted), MASK).train()
    before, random_state = whole_state(model), torch.get_rng_state()
    fill_both_ways(model, batch())
    assert differences(before, whole_state(model)) == []
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("alignment", ["same_position", "next_token"])
@pytest.mark.parametrize("size", [8, 2], ids=["large", "small"])
def test_what_is_compared(alignment, size):
    config = prism.PrismConfig(mask_token_id=31, logits_alignment=alignment)
    model = prism.attach_quality_head(tiny_backbone(max_position_embeddings=512), config)
    given, asked, looks = batch(torch.randint(3, 30, (size, 400))), {}, []
    given["attention_mask"][:, :50] = 0  # on the left, as others than our collator may have it
    given["maskable"] &= given["attention_mask"] == 1

    def note(_, args, kwargs):
        asked.update(ids=args[0], mask=args[1])
        looks.append(kwargs["logits_at"].view(2, -1))

    model.register_forward_pre_hook(note, with_kwargs=True)
    filled = fill_both_ways(model, given)
    at, other = torch.cat(looks, dim=-1)
    assert max(look.numel() for look in looks) <= max(256, size * 400 // 4), "no more logits than a quarter of the batch"
    noised, present = asked["ids"].flatten(), asked["mask"].flatten()
    ids = given["input_ids"].repeat(1 if size == 8 else 4, 1).flatten()
    assert torch.equal(filled[:, 0].long(), ids[at])
    assert len(filled) == 512
    assert torch.equal(other - at, torch.full_like(at, -1 if alignment == "same_position" else 1))
    assert (noised[at] == 31).all()
    assert (noised == 31).float().mean() == pytest.approx(0.25 * 350 / 400, abs=0.04)
    assert len({(row // 400 % size, row % 400) for row in at.tolist()}) == 512, "each token once"
    assert present[at - 1].all(), "nothing behind padding"
    assert torch.equal(filled[:, 3] == 1, (ids[at] != ids[at - 1]) & (ids[at] != ids[at + 1]))
    turned = {"input_ids": asked["ids"].roll(-50, 1), "attention_mask": asked["mask"].roll(-50, 1)}  # where a row alone stands
    full = model.plain_backbone(**turned).logits.flatten(0, 1)
    expected = cross_entropy(full[at - 50 if alignment == "same_position" else at - 51], ids[at], reduction="none")
    torch.testing.assert_close(filled[:, 1], expected, atol=1e-4, rtol=0)


def judged(worse, *, spread=0.1, tokens=200, other=1.0, kinds=50, of_neighbours=0.0):
    """The verdict on a difference of so many nats, with that standard deviation, on so many tokens of so many kinds.

    Where half of them equal a neighbour, the difference is another one on these (`of_neighbours` is added).
    """
    noise = torch.linspace(-1.7, 1.7, tokens) * spread
    differs = (torch.arange(tokens) % 2 == 0) | (not of_neighbours)
    claimed = other + worse + noise + of_neighbours * ~differs
    columns = (torch.arange(tokens) % kinds, claimed, torch.full((tokens,), other), differs)
    filled = torch.stack([column.float() for column in columns], dim=-1)
    return judge_alignment_on_data("Name", get_spec_by_model_type("mistral"), filled)


@pytest.mark.parametrize(
    ("case", "ok"),
    [
        ({"worse": 1.0}, False),
        ({"worse": 0.4}, True),  # too little
        ({"worse": 1.0, "spread": 4.0}, True),  # within 5 standard errors
        ({"worse": 2.0, "spread": 4.0}, False),
        ({"worse": 1.0, "tokens": 19}, None),  # too few to say
        ({"worse": 1.0, "tokens": 20}, False),
        ({"worse": 9.0, "other": 3.6}, True),  # no better than log(50), which the frequencies give
        ({"worse": 1.0, "kinds": 2, "other": 0.5}, True),
        ({"worse": -1.0}, True),
        ({"worse": 0.0, "of_neighbours": 4.0}, True),  # only where it may repeat what it sees
        ({"worse": 4.0, "of_neighbours": -4.0}, False),
        ({"worse": 1.0, "of_neighbours": -2.0}, True),  # only where it may not
    ],
)
def test_when_a_difference_is_clear(case, ok):
    assert judged(**case).ok is ok
