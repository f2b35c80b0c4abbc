"""Everything that looks, samples, trains and judges runs where the model is, mixes no devices, and gives what the CPU gives."""

import json
from pathlib import Path

import pytest
import torch
from other_device import DEVICE, MixedDevicesError, other_device
from peft import LoraConfig

from prism_plugin.backbones import load_backbone
from prism_plugin.cli import main as cli
from prism_plugin.core import BelowRemasking, EvenSchedule, QualityRemasking
from prism_plugin.data import PrismCollator
from prism_plugin.decoding import CachedLook, GuidedLook, LeftOutLook, SoftLook
from prism_plugin.evaluation.tasks.enumerable import draft_states, proposal_of, three_letter_table
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.training import get_objective
from prism_plugin.training.meters import Meters, meters_of, ratios_of

MASK = 31
ROUNDING = {"atol": 1e-4, "rtol": 1e-4}  # another kernel of attention


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved adapter with LoRA whose head and LoRA are random, its backbone beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    tiny_backbone(num_hidden_layers=1).save_pretrained(folder / "backbone")
    model = attach_quality_head(load_backbone(folder / "backbone"), lora=LoraConfig(r=2), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.normal_(std=0.5)
    model.save_pretrained(folder / "weights")
    return folder / "weights"


@pytest.fixture
def elsewhere(monkeypatch):
    with other_device(monkeypatch) as name:
        yield name


def on_both(folder, monkeypatch, use):
    """What `use` gives with the model on the CPU, and on the other device."""
    here = use(PrismModel.from_pretrained(folder))
    with other_device(monkeypatch) as name:
        return here, use(PrismModel.from_pretrained(folder, device_map=name))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there: there + torch.ones(3),
        lambda there: torch.where(torch.ones(3).bool(), there, there),
        lambda there: there[torch.tensor([0, 1])],
        lambda there: torch.cat((there, torch.arange(3.0))),
        lambda there: there.index_copy(0, torch.tensor([1]), there[:1]),
    ],
)
def test_the_other_device_refuses_what_an_accelerator_refuses(elsewhere, mixed):
    there = torch.zeros(3, device=elsewhere)
    with pytest.raises(MixedDevicesError, match="tensors of the CPU"):
        mixed(there)
    with pytest.raises(TypeError, match="float64"):
        there.double()
    assert (there + torch.tensor(1.0)).tolist() == [1, 1, 1]


def test_backbone_lora_and_head_are_loaded_onto_the_device(folder, elsewhere):
    model = PrismModel.from_pretrained(folder, device_map=elsewhere, dtype="bfloat16")
    assert model.device == DEVICE
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {DEVICE}
    dtypes = {"head": set(), "lora": set(), "backbone": set()}
    for name, parameter in model.named_parameters():
        part = "head" if name.startswith("quality_head.") else "lora" if "lora_" in name else "backbone"
        dtypes[part].add(parameter.dtype)
    assert dtypes == {"head": {torch.float32}, "lora": {torch.float32}, "backbone": {torch.bfloat16}}
    assert model.score(["the cat sat"]).device == DEVICE


SETTINGS = {"temperature": 1.0, "top_p": 0.8, "block_length": 5}


# They read noise, quality and visible tokens, remember, overwrite, and make every kind of look; that each single rule stays on
# its device is in core/test_no_waiting.py.
SAMPLERS = (
    "prism", "remdm-conf", "redraft", "prism-threshold", "remdm-loop", "t2m", "t2t", "history-mean", "rcr", "wino", "klass",
    "remedi", "proseco", "backplay", "gidd", "backtrack",
)  # fmt: skip
LOOKS = {"guided": GuidedLook(1.0), "soft": SoftLook(), "left out": LeftOutLook(2), "cached": CachedLook("prefix", every=2)}


def test_samplers_give_the_tokens_of_the_cpu(folder, monkeypatch):
    ids = torch.tensor([[5, 6, MASK, MASK, MASK, MASK, MASK], [7, MASK, MASK, 8, MASK, 0, 0]])

    def sample(model):
        given = {}
        for name in SAMPLERS:
            settings = preset_settings(name, {} if "redraft" in name else SETTINGS)
            generator = [torch.Generator().manual_seed(seed) for seed in range(2)]
            generator = generator[0] if name == "prism" else generator
            sampler = RemaskingSampler(model, num_steps=3, **settings)
            output = sampler.infill(ids, ids > 0, generator=generator, return_trace=name == "prism")
            assert output.sequences.device == model.device
            given[name] = output.sequences.tolist(), output.num_remasked.tolist()
        for name, look in LOOKS.items():
            rule = BelowRemasking(0.3, "context_confidence") if name == "left out" else QualityRemasking()
            sampler = RemaskingSampler(model, num_steps=4, look=look, remasking=rule, schedule=EvenSchedule(1))
            output = sampler.infill(ids, ids > 0)
            given[name] = output.sequences.tolist(), output.num_remasked.tolist()
        return given

    here, there = on_both(folder, monkeypatch, sample)
    assert there == here
    assert sum(sum(remasked) for _, remasked in here.values()) > 0, "no sampler took a token back"


OBJECTIVES = {
    "mixture": {
        "num_drafts": 2,
        "drafts": [
            {"num_drafted": 2, "tokens": "sample"},
            {"share": [0.2, 0.6], "num_looks": 2, "positions": "confidence", "tokens": "argmax"},
        ],
    },
    "share": {"num_drafted": 2, "diffusion_share": 0.5},
    "recorded": {},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_training_steps_give_the_losses_of_the_cpu(folder, monkeypatch, kind):
    objective = get_objective("prism_recorded" if kind == "recorded" else "prism", **OBJECTIVES[kind])
    rows = []
    for number in range(3):
        clean = torch.randint(3, MASK, (8 + number,), generator=torch.Generator().manual_seed(number)).tolist()
        row = {"input_ids": clean, "maskable": [True] * len(clean), "example_id": number}
        rows.append(row | ({"draft_ids": [MASK, 4, *clean[2:]]} if kind == "recorded" else {}))

    def step(model):
        batch = {name: tensor.to(model.device) for name, tensor in PrismCollator(pad_token_id=0)(rows).items()}
        with torch.no_grad():
            output = objective.step(model, batch, epoch=0, seed=0, unwrapped=model)
        meters = Meters(meters_of(objective), model.device)
        meters.add(ratios_of(objective, output))
        return meters.totals.tolist()

    here, there = on_both(folder, monkeypatch, step)
    torch.testing.assert_close(there, here, **ROUNDING)


def test_a_proposal_is_the_one_of_the_cpu(tmp_path, monkeypatch):
    table = three_letter_table()
    backbone = tiny_backbone(vocab_size=table.num_letters + 1, num_hidden_layers=1)
    backbone.save_pretrained(tmp_path / "backbone")
    config = PrismConfig(mask_token_id=table.num_letters)
    attach_quality_head(load_backbone(tmp_path / "backbone"), config).save_pretrained(tmp_path / "weights")

    def ask(model):
        proposal = proposal_of(model, table)
        return proposal, draft_states(table, proposal, 1).quality(model)

    here, there = on_both(tmp_path / "weights", monkeypatch, ask)
    torch.testing.assert_close(there, here, **ROUNDING)


def lines_of(capsys):
    return json.loads(capsys.readouterr().out)


def test_sample_takes_the_accelerator_that_is_there(folder, tmp_path, capsys, monkeypatch):
    texts = ["the [MASK][MASK]t", "a dog", "[MASK] ran to[MASK][MASK]"]
    arguments = ["sample", *texts, "--adapter", str(folder), "--preset", "prism", "--num-steps", "4", "--json"]
    arguments += ["--set", "temperature=1.0", "--batch-size", "1"]
    assert cli.main(arguments) == 0
    here = lines_of(capsys)
    with other_device(monkeypatch):
        assert cli.main([*arguments, "--watch", "--report", str(tmp_path / "page.html")]) == 0
    there = lines_of(capsys)
    for rows in (here["rows"], there["rows"]):
        rates = [row.pop("quality") for row in rows]
        assert all(0 <= one <= 1 for row in rates for one in row)  # which are rounded otherwise there
    assert there == here
    assert (tmp_path / "page.html").is_file()


def test_eval_quality_judges_where_the_model_is(folder, tmp_path, capsys, monkeypatch):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("the cat sat.", "so it is")))
    arguments = ["eval", "quality", "--adapter", str(folder), "--data", str(data), "--preset", "prism", "--num-steps", "2"]
    arguments += ["--masked", "0.6", "--drafts", "{share: [0.3, 0.8], num_looks: 2}", "--set", "temperature=1.0", "--json"]
    with other_device(monkeypatch) as name:
        assert cli.main([*arguments, "--device", name, "--batch-size", "1"]) == 0
    judged = lines_of(capsys)
    assert judged["drafts"]["tokens"] > 0
    assert judged["states"]["tokens"] > 0


def test_eval_sudoku_solves_where_the_model_is(capsys, monkeypatch):
    shipped = Path(__file__).parents[1] / "adapters" / "sudoku-9x9"
    arguments = [
        "eval",
        "sudoku",
        "--adapter",
        str(shipped / "weights"),
        "--data",
        str(shipped / "data" / "test.txt"),
        "--json",
    ]
    with other_device(monkeypatch):
        assert cli.main([*arguments, "--limit", "1", "--num-steps", "2", "--presets", "prism"]) == 0
    assert lines_of(capsys)["rows"][0]["num_forward_passes"] == 2
