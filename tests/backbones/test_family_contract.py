"""The contract of a family: attach, gather, pad, checkpoint, train, save, load elsewhere, sample. Every family goes through it,
those with remote code as stand-ins; with `PRISM_REMOTE_CODE` set (docs/families.md) also their real code. By default all are
attached to and probed, and those in `families.AXES` and the stand-ins do the rest; `pytest -m slow` takes the others."""

import copy
import json
from contextlib import nullcontext
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from families import AXES, with_marks
from peft import LoraConfig
from remote_families import MASK, STANDIN_FAMILIES, checked_out_families
from safetensors.torch import load_file, save_file
from whole_state import differences, whole_state

import prism_plugin as prism
from prism_plugin.backbones import (
    call_arguments,
    get_backbone_spec,
    get_spec_by_model_type,
    hidden_size_of,
    lm_head_of,
    load_backbone,
)
from prism_plugin.backbones.builtin import BUILTIN_SPECS
from prism_plugin.core import ConfidenceUnmasking, EvenSchedule, QualityRemasking
from prism_plugin.errors import BackboneError, ConfigurationError, DataFormatError, SamplingError
from prism_plugin.modeling.attached_settings import changed_settings
from prism_plugin.modeling.probing import probe_model
from prism_plugin.testing import TINY_FAMILIES, tiny_backbone

REMOTE = {**STANDIN_FAMILIES, **checked_out_families()}
LORA = LoraConfig(r=2, init_lora_weights=False)
IDS = torch.arange(2, 30).view(4, 7)
LENGTHS = (7, 5, 3, 6)


@dataclass(frozen=True)
class Family:
    """A family on disk."""

    name: str
    folder: Path

    def backbone(self):
        return load_backbone(self.folder, trust_remote_code=self.name in REMOTE)

    def attached(self, lora=LORA, backbone=None):
        torch.manual_seed(0)
        model = prism.attach_quality_head(backbone or self.backbone(), prism.PrismConfig(mask_token_id=MASK), lora=lora)
        torch.nn.init.normal_(model.quality_head.layers[-1].weight)
        return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder with a checkpoint, made when first asked for."""
    made = {}

    def folder_of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("families") / name.replace(":", "_")
            torch.manual_seed(0)
            save = REMOTE[name].save if name in REMOTE else tiny_backbone(name).save_pretrained
            save(made[name])
        return made[name]

    return folder_of


def described(name):
    """While open, the family's spec says what has to be said of this code of it."""
    return REMOTE[name].described() if name in REMOTE and REMOTE[name].spec_changes else nullcontext()


@pytest.fixture(params=with_marks(*TINY_FAMILIES, *REMOTE))
def family(request, folders):
    with described(request.param):
        yield Family(request.param, folders(request.param))


@pytest.fixture(params=[*TINY_FAMILIES, *REMOTE])
def any_family(request, folders):
    with described(request.param):
        yield Family(request.param, folders(request.param))


def present(spec):
    """A mask of ragged rows, or whole rows where the family takes no mask."""
    lengths = torch.tensor(LENGTHS if spec.attention_mask != "none" else (7, 7, 7, 7))
    return torch.arange(7) < lengths[:, None]


def full_logits(model, ids, mask):
    """The backbone's own logits, each about the token at its position."""
    logits = model.backbone(**call_arguments(model.spec, ids, mask)).logits
    if model.spec.logits_alignment == "next_token":
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
    return logits


def looked_at(model, ids, mask=None):
    everything = torch.ones_like(ids, dtype=torch.bool)
    output = model(ids, mask, logits_at=everything)
    return output.logits.view(*ids.shape, -1), output.quality_logits


def test_there_are_families():
    assert len(TINY_FAMILIES) == 35
    assert len(STANDIN_FAMILIES) == 10
    assert set(TINY_FAMILIES) >= AXES.keys()
    configs = [family.config for family in STANDIN_FAMILIES.values()]
    found = {get_spec_by_model_type(config["model_type"], config["architectures"]) for config in configs}
    assert {spec.model_type for spec in found} | set(TINY_FAMILIES) == {spec.model_type for spec in BUILTIN_SPECS}


def test_the_spec_fits(any_family):
    family = any_family
    backbone = family.backbone()
    spec = get_backbone_spec(backbone)
    classes = {type(module).__name__ for module in backbone.modules()}
    leaves = {name.rpartition(".")[2] for name, _ in backbone.named_modules()}
    assert set(spec.layer_classes) <= classes
    assert set(spec.lora_target_modules) <= leaves
    assert spec.reference.startswith("https://")
    model = family.attached(backbone=backbone)
    assert model._no_split_modules == list(spec.layer_classes)
    width = hidden_size_of(backbone.config, spec)
    assert model.quality_head.layers[0].normalized_shape == (width,)
    # ALBERT, ELECTRA and RoFormer may have embeddings that are narrower than the rest, and an LM head that is as narrow.
    rows, narrow = model.get_output_embeddings().weight.shape
    assert (rows, narrow <= width) == (32, True)
    assert sum(p.numel() for p in model.get_input_embeddings().parameters()) == 32 * narrow
    assert all(check.ok for check in probe_model(model))


def test_the_lm_head_gets_no_adapter(family):
    backbone = family.backbone()
    head = lm_head_of(backbone, get_backbone_spec(backbone))
    name = next(name for name, module in backbone.named_modules(remove_duplicate=False) if module is head)
    with pytest.raises(ConfigurationError, match="`lora` must not adapt the LM head, but its `target_modules` match"):
        prism.attach_quality_head(
            backbone, prism.PrismConfig(mask_token_id=MASK), lora=LoraConfig(target_modules=[name.rpartition(".")[2]])
        )


def test_targets_that_match_nothing_are_refused(family):
    with pytest.raises(ConfigurationError, match="nowhere"):
        family.attached(LoraConfig(target_modules=["nowhere"]))


@pytest.mark.parametrize("lora", [None, LORA], ids=["frozen", "lora"])
def test_gathered_rows_equal_full_logits(family, lora):
    model = family.attached(lora)
    mask = present(model.spec)
    full = full_logits(model, IDS, mask)
    wanted = mask & (torch.rand(IDS.shape) < 0.5)
    wanted[:, 0] = True
    torch.testing.assert_close(model(IDS, mask, logits_at=wanted).logits, full[wanted], atol=1e-5, rtol=0)
    index = torch.tensor([20, 3, 3, 0])
    torch.testing.assert_close(model(IDS, mask, logits_at=index).logits, full.flatten(0, 1)[index], atol=1e-5, rtol=0)


def test_no_vocabulary_row_is_computed_that_was_not_asked_for(family):
    model = family.attached()
    rows = []
    if model.get_output_embeddings() is model.get_input_embeddings():
        return  # a product with the embeddings, which no hook sees
    model.get_output_embeddings().register_forward_hook(lambda _, args, output: rows.append(output.shape[:-1].numel()))
    assert model(IDS).logits is None
    model(IDS, logits_at=torch.tensor([4, 9]), with_quality=False)
    assert model(IDS, logits_at=torch.zeros_like(IDS, dtype=torch.bool)).logits.shape == (0, 32)
    assert rows == [0, 2, 0]


def test_an_all_masked_canvas_is_finite(family):
    model = family.attached()
    if model.spec.needs_visible_token:
        with pytest.raises(ConfigurationError, match=r"Every row of a dplm must hold .* not the mask, .* holds none"):
            model(torch.tensor([[2, MASK, MASK], [MASK, MASK, 2]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
        return
    logits, quality = looked_at(model, torch.full((1, 5), MASK))
    assert logits.isfinite().all()
    assert quality.isfinite().all()


def test_a_batch_equals_its_rows_one_by_one(family):
    model = family.attached()
    mask = present(model.spec)
    padded = torch.where(mask, IDS, 0)
    logits, quality = looked_at(model, padded, mask)
    for row, length in enumerate(mask.sum(-1).tolist()):
        alone_logits, alone_quality = looked_at(model, IDS[[row], :length])
        # Other shapes, other kernels: float32 differs by up to 1e-5 here; a padded token that is looked at moves 0.2 or more.
        torch.testing.assert_close(logits[[row], :length], alone_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(quality[[row], :length], alone_quality, atol=1e-4, rtol=0)


def test_a_padded_token_reaches_nobody(family):
    model = family.attached()
    if model.spec.attention_mask == "none":
        with pytest.raises(SamplingError, match="takes no attention mask, so the rows of a batch must be equally long"):
            sampler(model).sample(IDS, IDS > 2, max_new_tokens=2)
        return
    mask = present(model.spec)
    before, after = (looked_at(model, torch.where(mask, IDS, token), mask) for token in (0, 9))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one[mask], other[mask], atol=1e-6, rtol=0)
    earlier = IDS.clone()
    earlier[:, 2] = 30
    assert not torch.allclose(looked_at(model, earlier, mask)[1][:, 0], before[1][:, 0], atol=1e-4), "the mask made it causal"


def test_activation_checkpointing_changes_no_gradient(family):
    model = family.attached().train()
    if not model.spec.activation_checkpointing:
        with pytest.raises(BackboneError, match="cannot recompute its activations"):
            model.activation_checkpointing_enable()
        return
    for module in model.modules():
        if "dropout" in type(module).__name__.lower():
            module.p = 0.0
    layer = next(module for module in model.modules() if type(module).__name__ in model.spec.layer_classes)
    calls = []
    # Inside of a layer, since some classes recompute without calling the layer itself.
    inner = next(module for module in layer.modules() if not list(module.children()) and list(module.parameters()))
    inner.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients():
        calls.clear()
        model.zero_grad()
        output = model(IDS, present(model.spec), logits_at=torch.tensor([1, 5]))
        (output.logits.logsumexp(-1).sum() + output.quality_logits.sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    expected, once = gradients(), len(calls)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    found = gradients()
    assert len(calls) > once, "nothing was recomputed"
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_training_moves_the_head_and_lora_and_nothing_else(family, tmp_path):
    backbone = family.backbone()
    state = whole_state(backbone)
    model = family.attached(LoraConfig(r=2), backbone)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = [
        {"input_ids": IDS[i % 4, : 7 if model.spec.attention_mask == "none" else LENGTHS[i % 4]].tolist()} for i in range(8)
    ]
    if model.spec.needs_visible_token:
        rows = [{**row, "maskable": [False] + [True] * (len(row["input_ids"]) - 1)} for row in rows]
    arguments = prism.PrismTrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant",
        save_strategy="no", use_cpu=True, disable_tqdm=True, report_to="none",
    )  # fmt: skip
    trainer = prism.PrismTrainer(
        model, arguments, objective=prism.get_objective("prism", num_drafted=2, t_min=0.5), train_dataset=rows
    )
    trainer.train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == trainable
    assert all("lora_" in name or name.startswith("quality_head.") for name in moved)
    assert any("lora_" in name for name in moved)
    assert differences(state, whole_state(model.detach())) == []


def test_rows_of_different_length_are_refused_without_a_mask(family, tmp_path):
    if get_backbone_spec(family.backbone()).attention_mask != "none":
        return
    model = family.attached()
    rows = [{"input_ids": IDS[i % 4, : LENGTHS[i % 4]].tolist()} for i in range(8)]
    trainer = prism.PrismTrainer(
        model, prism.PrismTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True),
        train_dataset=rows,
    )  # fmt: skip
    with pytest.raises(DataFormatError, match="takes no attention mask, so all rows of a batch must be equally long"):
        trainer.train()


def sampler(model):
    return prism.RemaskingSampler(
        model, unmasking=ConfidenceUnmasking(), remasking=QualityRemasking(), schedule=EvenSchedule(num_remask=1),
        num_steps=4, temperature=0.0,
    )  # fmt: skip


def test_sampling(family):
    model = family.attached()
    mask = present(model.spec)
    output = sampler(model).sample(torch.where(mask, IDS, 0), mask, max_new_tokens=5)
    assert output.sequences.shape == (4, 12)
    assert torch.equal(output.sequences[:, :7][mask], IDS[mask])
    assert not (output.sequences == MASK).any()
    looks = output.num_forward_passes
    # a row whose masks are in two blocks of the attention shares its steps over them, and may need fewer
    assert (looks <= 4).all() if model.spec.attention_block_length == 4 else (looks == 4).all()
    alone = [sampler(model).sample(IDS[[row], :length], max_new_tokens=5) for row, length in enumerate(mask.sum(-1))]
    assert torch.equal(output.sequences[:, 7:], torch.cat([one.sequences[:, -5:] for one in alone]))


def test_detach_gives_the_backbone_back(family):
    backbone = family.backbone()
    spec = get_backbone_spec(backbone)
    rows = [torch.arange(length)[None] % 28 + 2 for length in (33, 5)]

    def logits():
        return [copy.deepcopy(backbone)(**call_arguments(spec, row, None)).logits for row in rows]

    before, expected = whole_state(backbone), logits()
    model = prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=MASK), lora=LORA)
    for row in rows:
        model.score(row)
    sampler(model).sample(rows[1], max_new_tokens=5)
    model.train()(IDS).quality_logits.sum().backward()
    model.zero_grad()
    assert model.detach() is backbone
    assert differences(before, whole_state(backbone)) == []
    assert all(torch.equal(one, other) for one, other in zip(logits(), expected, strict=True))


def test_what_attaching_changes_is_listed(family):
    backbone = family.backbone()
    before, told = whole_state(backbone), changed_settings(backbone, get_backbone_spec(backbone))
    spec = prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=MASK)).spec
    changed = {path for path in differences(before, whole_state(backbone)) if not path.endswith(".requires_grad")}
    hooks = {path for path in changed if path.startswith(f"{spec.final_hidden_at}._forward_pre_hooks")}
    assert hooks
    assert changed - hooks == told.keys()
    assert all(attrgetter(path)(backbone) == now != was == before[path] for path, (was, now) in told.items())


LOAD_ALL = """
import json
from pathlib import Path
from dataclasses import replace
import torch
from safetensors.torch import load_file
import prism_plugin as prism
from prism_plugin.backbones import get_spec_by_model_type

worst = {}
for folder, trust, model_type, changes in json.loads(Path("asked.json").read_text()):
    if changes:
        spec = get_spec_by_model_type(model_type)
        prism.register_backbone(replace(spec, **changes), replace=True)
    expected = load_file(folder + "/expected.safetensors")
    model = prism.PrismModel.from_pretrained(folder, trust_remote_code=trust)
    output = model(expected["ids"], logits_at=torch.arange(expected["ids"].numel()))
    pairs = ((output.logits, expected["logits"]), (output.quality_logits, expected["quality_logits"]))
    if changes:
        prism.register_backbone(spec, replace=True)
    worst[folder] = max((found - wanted).abs().max().item() for found, wanted in pairs)
print(json.dumps(worst))
"""


@pytest.fixture(scope="module")
def loaded_elsewhere(request, folders, scripts, tmp_path_factory):
    """Folder of a saved model of each family that is tested, and what one new process made of all of them."""
    base, saved, asked = tmp_path_factory.mktemp("saved"), {}, []
    wanted = "test_a_new_process_loads_what_was_saved"
    for name in [item.callspec.params["family"] for item in request.session.items if item.originalname == wanted]:
        with described(name):
            model = Family(name, folders(name)).attached()
        model.save_pretrained(base / name)
        output = model.eval()(IDS, logits_at=torch.arange(IDS.numel()))
        expected = {"ids": IDS, "logits": output.logits, "quality_logits": output.quality_logits}
        save_file({key: value.detach().contiguous() for key, value in expected.items()}, base / name / "expected.safetensors")
        saved[name] = str(base / name)
        changes = dict(REMOTE[name].spec_changes) if name in REMOTE else {}
        asked.append((saved[name], name in REMOTE, model.config.model_type, changes))
    (base / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    (base / "load_all.py").write_text(LOAD_ALL, encoding="utf-8")
    ignored = ".*" if checked_out_families() else ""  # real code for transformers 4 warns of itself
    done = scripts.run(base / "load_all.py", base, output=base, ignored=ignored)
    assert done.returncode == 0, done.stderr[-3000:]
    return saved, json.loads(done.stdout.splitlines()[-1])


def test_a_new_process_loads_what_was_saved(family, loaded_elsewhere):
    saved, worst = loaded_elsewhere
    assert worst[saved[family.name]] <= 1e-6
    assert load_file(saved[family.name] + "/adapter_model.safetensors")
