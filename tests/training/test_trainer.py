import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from transformers import LlamaForCausalLM

from prism_plugin.core import terms as terms_module
from prism_plugin.core.drafting import DraftRule
from prism_plugin.core.labels import Labels
from prism_plugin.data import Origin
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone
from prism_plugin.training import Objective, PrismTrainingArguments, checks, get_objective
from prism_plugin.training.given_rows import as_prepared
from prism_plugin.training.meters import figures_of

LEARNT = ("quality_loss", "diffusion_loss", "loss", "base_rate", "grad_norm")


def train(trainer):
    trainer.train()
    logs = [log for log in trainer.state.log_history if "quality_loss" in log]
    weights = {name: p.detach().clone() for name, p in trainer.prism_model.named_parameters()}
    return logs, weights


def assert_same_run(one, other, atol):
    for first, second in zip(one[0], other[0], strict=True):
        assert [first[key] for key in LEARNT] == pytest.approx([second[key] for key in LEARNT], rel=atol)
    for name in one[1]:
        torch.testing.assert_close(other[1][name], one[1][name], atol=atol, rtol=1e-4)


def test_accumulation_changes_nothing(lab, tmp_path):
    objective = get_objective("prism", drafts=(DraftRule(num_drafted=2), DraftRule(num_drafted=4, num_looks=2)), t_min=0.2)
    rows = lab.make_rows(18)  # two rows are left over in each epoch, and the third epoch is begun
    settings = {"objective": objective, "rows": rows, "max_steps": 9, "optim": "sgd", "learning_rate": 1e-3}
    whole = train(lab.make_trainer(tmp_path, per_device_train_batch_size=4, **settings))
    split = train(lab.make_trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings))
    assert len(whole[0]) == 9
    assert_same_run(whole, split, atol=1e-4)


def test_every_epoch_visits_other_rows_in_another_order_with_fresh_noise(lab, tmp_path):
    trainer = lab.make_trainer(tmp_path, rows=lab.make_rows(18), max_steps=8)
    seen = []
    step = trainer.objective.step

    class Listening(Objective):
        def step(self, model, batch, *, epoch, **rest):
            seen.extend([(epoch, batch["example_id"].tolist())] * (epoch >= 0))  # before, the gradients are looked at
            return step(model, batch, epoch=epoch, **rest)

    trainer.objective = Listening(*vars(trainer.objective).values())
    trainer.train()
    assert [epoch for epoch, _ in seen] == [0] * 4 + [1] * 4
    orders = [[one for _, batch in seen[start : start + 4] for one in batch] for start in (0, 4)]
    assert all(len(set(order)) == 16 for order in orders)
    assert orders[0] != orders[1]


def test_what_should_learn_moves_and_the_rest_does_not(lab, tmp_path):
    model = lab.build_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(lab.make_trainer(tmp_path, model=model))
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == ("lora_" in name or name.startswith("quality_head")), name


def test_the_head_has_its_own_learning_rate(lab, tmp_path):
    trainer = lab.make_trainer(
        tmp_path, learning_rate=1e-3, head_learning_rate=1e-2, lr_scheduler_type="linear", weight_decay=0.1
    )
    logs, _ = train(trainer)
    assert logs[0]["learning_rate"] == pytest.approx(1e-3)
    assert [log["head_learning_rate"] for log in logs] == pytest.approx([10 * log["learning_rate"] for log in logs])
    groups = trainer.optimizer.param_groups
    head = {id(parameter) for parameter in trainer.prism_model.quality_head.parameters()}
    of_head = [group["initial_lr"] for group in groups for parameter in group["params"] if id(parameter) in head]
    assert of_head == [1e-2] * len(head)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in trainer.model.parameters())


@pytest.mark.slow
def test_wrong_labels_raise_the_loss(lab, tmp_path, monkeypatch):
    cycle = [3, 4, 5] * 4
    rows = [{"example_id": index, "input_ids": cycle[index % 3 :][:8], "maskable": [True] * 8} for index in range(96)]
    objective = get_objective("prism", drafts=(DraftRule(num_drafted=1),), t_min=0.1, t_max=0.4)

    def final_loss(name):
        settings = {"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 1e-2}
        trainer = lab.make_trainer(tmp_path / name, objective=objective, rows=rows, eval_rows=rows, **settings)
        trainer.train()
        monkeypatch.undo()
        return trainer.evaluate()["eval_quality_loss"]

    right = final_loss("right")
    honest = terms_module.drafted_labels

    def flipped(*args):
        labels = honest(*args)
        return Labels((1 - labels.targets) * labels.labelled, labels.labelled)

    monkeypatch.setattr(terms_module, "drafted_labels", flipped)
    assert final_loss("wrong") > right + 0.2


def test_evaluation_is_repeatable_and_does_not_depend_on_the_batch_size(lab, tmp_path):
    objective = get_objective("prism", num_drafts=2, t_min=0.2)
    figures = []
    for batch_size in (4, 4, 7):
        trainer = lab.make_trainer(
            tmp_path, objective=objective, eval_rows=lab.make_rows(11, seed=3), per_device_eval_batch_size=batch_size
        )
        figures += [trainer.evaluate(), trainer.evaluate()]
    names = [name for name in figures[0] if "runtime" not in name and "second" not in name and "time" not in name]
    assert {f"eval_{name}" for name in figures_of(objective)} == set(names) - {"epoch"}
    for other in figures[1:]:
        assert [other[name] for name in names] == pytest.approx([figures[0][name] for name in names], rel=1e-4, nan_ok=True)
    weighted = figures[0]["eval_quality_loss"] + 0.5 * figures[0]["eval_diffusion_loss"]
    assert figures[0]["eval_loss"] == pytest.approx(weighted)


def test_evaluation_between_steps_does_not_change_training(lab, tmp_path):
    plain = train(lab.make_trainer(tmp_path, max_steps=5))
    watched = train(lab.make_trainer(tmp_path, max_steps=5, eval_rows=lab.make_rows(5), eval_strategy="steps", eval_steps=2))
    assert_same_run(plain, watched, atol=0)


def test_bf16_and_activation_checkpointing_train_the_same_model(lab, tmp_path):
    plain = train(lab.make_trainer(tmp_path))
    recomputed = train(lab.make_trainer(tmp_path, activation_checkpointing=True))
    assert_same_run(plain, recomputed, atol=1e-5)
    coarse = train(lab.make_trainer(tmp_path, bf16=True))
    assert coarse[0][0]["loss"] == pytest.approx(plain[0][0]["loss"], rel=5e-2)
    lora = [name for name in plain[1] if "lora_" in name]
    assert all(not torch.equal(coarse[1][name], lab.build_model().get_parameter(name)) for name in lora)


def test_activation_checkpointing_recomputes_the_layers_that_were_run(lab, tmp_path):
    def first_gradient(**settings):
        model = lab.build_model(dropout=0.5)
        trainer = lab.make_trainer(tmp_path, model=model, max_steps=1, optim="sgd", max_grad_norm=0.0, **settings)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer.train()
        return {name: p.detach() - before[name] for name, p in model.named_parameters() if p.requires_grad}

    checkpointed = first_gradient(activation_checkpointing=True)
    undropped = lab.build_model(dropout=0.0)
    trainer = lab.make_trainer(tmp_path, model=undropped, max_steps=1, optim="sgd", max_grad_norm=0.0)
    before = {name: p.detach().clone() for name, p in undropped.named_parameters()}
    trainer.train()
    for name, change in checkpointed.items():
        torch.testing.assert_close(change, undropped.get_parameter(name).detach() - before[name], atol=1e-6, rtol=1e-3)


def test_raw_rows_are_prepared_with_the_models_tokenizer(lab, tmp_path):
    model = lab.build_model(tokenizer=lab.tokenizer)
    for rows in ([{"text": "abc def."}] * 4, datasets.Dataset.from_list([{"text": "abc def."}] * 4)):
        trainer = lab.make_trainer(tmp_path, model=model, rows=rows)
        assert trainer.train_dataset[3]["input_ids"] == lab.tokenizer("abc def.")["input_ids"]
        assert trainer.train_dataset[3]["example_id"] == 3


def test_the_objective_is_recorded_with_the_model(lab, tmp_path):
    trainer = lab.make_trainer(tmp_path, objective=get_objective("prism", drafts=(DraftRule(num_drafted=5),)))
    trainer.save_model()
    stored = json.loads((tmp_path / "prism_config.json").read_text())["objective"]
    assert stored["name"] == "prism"
    assert stored["drafts"][0]["num_drafted"] == 5
    assert not list(tmp_path.glob("*.bin"))


def test_full_fine_tuning_trains_every_weight(lab, tmp_path):
    model = lab.build_model(lora=False, train_backbone=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    logs, weights = train(lab.make_trainer(tmp_path, model=model, objective=get_objective("prism", t_min=0.5)))
    still = {name for name in weights if torch.equal(weights[name], before[name])}
    # What is added to all keys alike leaves the softmax as it is: their gradient is zero, or what rounding makes of it.
    assert not still - {name for name in weights if name.endswith("key.bias")}
    assert all(math.isfinite(log["loss"]) for log in logs)


def test_a_best_checkpoint_is_chosen_by_what_the_objective_measures(lab, tmp_path):
    with pytest.raises(ConfigurationError, match=r"`metric_for_best_model` must be one of loss, .*quality_ece.*got 'accuracy'"):
        lab.make_trainer(tmp_path, metric_for_best_model="eval_accuracy")


@pytest.mark.parametrize(
    ("model", "objective", "words"),
    [
        ({"lora": False}, get_objective("prism"), "The backbone is frozen, so the diffusion term cannot teach it anything"),
        (
            {"lora": False, "train_backbone": True},
            get_objective("prism", diffusion_weight=0.0),
            "would unlearn the language model",
        ),
    ],
)
def test_impossible_combinations_are_refused(lab, tmp_path, model, objective, words):
    with pytest.raises(ConfigurationError, match=words):
        lab.make_trainer(tmp_path, model=lab.build_model(**model), objective=objective)


def test_a_head_trains_beside_offloaded_weights_where_trainer_leaves_them(lab, tmp_path):
    torch.manual_seed(0)
    tiny_backbone("llama").save_pretrained(tmp_path / "backbone")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    offloaded = {"device_map": places | {"model.rotary_emb": "cpu", "lm_head": "cpu"}, "offload_folder": tmp_path / "weights"}
    objective = get_objective("prism", diffusion_weight=0.0)
    trained = []
    for options in ({}, offloaded):
        backbone = LlamaForCausalLM.from_pretrained(tmp_path / "backbone", **options)
        assert any(parameter.is_meta for parameter in backbone.parameters()) == bool(options)
        torch.manual_seed(1)
        model = attach_quality_head(backbone, PrismConfig(mask_token_id=31))
        lab.make_trainer(tmp_path / "run", model=model, objective=objective, optim="sgd").train()
        trained.append(model.quality_head.state_dict())
    torch.testing.assert_close(trained[1], trained[0])
    model = attach_quality_head(cpu_offload(tiny_backbone(), torch.device("cpu")), PrismConfig(mask_token_id=31))
    with pytest.raises(ConfigurationError, match=r"needs a backbone with a `device_map` .*word_embeddings.weight is offloaded"):
        lab.make_trainer(tmp_path, model=model, objective=objective)


def test_lora_dropout_that_checkpointing_would_ignore_is_refused(lab, tmp_path):
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31), lora=LoraConfig(r=2, lora_dropout=0.1))
    lab.make_trainer(tmp_path, model=model)
    with pytest.raises(ConfigurationError, match=r"a `lora_dropout` of 0\.1 would be ignored; set it to 0"):
        lab.make_trainer(tmp_path, model=model, activation_checkpointing=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head_learning_rate": 0.0}, "`head_learning_rate` must be positive and finite, got 0.0"),
        ({"learning_rate": -1.0}, "`learning_rate` must be positive and finite, got -1.0"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1, got 0"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be at least 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1, got 0"),
        ({"dataloader_num_workers": -1}, "`dataloader_num_workers` must be at least 0, got -1"),
        ({"seed": -1}, r"`seed` must be at least 0 and below 2\*\*32, got -1"),
        ({"data_seed": 2**32}, r"`data_seed` must be at least 0 and below 2\*\*32, got 4294967296"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, or -1 for `num_train_epochs`, got 0"),
        ({"max_steps": -5}, "`max_steps` must be at least 1, or -1 for `num_train_epochs`, got -5"),
        ({"num_train_epochs": 0}, "`num_train_epochs` must be positive, got 0"),
        ({"save_steps": 0}, "`save_steps` must be positive, got 0; `save_strategy: no` saves at the end"),
        ({"remove_unused_columns": True}, "`remove_unused_columns` must be False, because the objective reads columns"),
        ({"hub_strategy": "every_save"}, "`hub_strategy` must be 'end', because of a checkpoint transformers uploads neither"),
        ({"dataloader_drop_last": True}, "`dataloader_drop_last` must be False, because evaluation would lose rows"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy` must be 'random', because"),
    ],
)
def test_arguments_that_nothing_would_read_are_refused(tmp_path, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        PrismTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_the_best_checkpoint_is_chosen_the_right_way_round(tmp_path):
    for metric, greater in (("loss", False), ("quality_auroc", True), ("quality_ece", False), ("eval_quality_brier", False)):
        args = PrismTrainingArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric)
        assert args.greater_is_better is greater
    args = PrismTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, metric_for_best_model="quality_ece", greater_is_better=True
    )
    assert args.greater_is_better


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("rows.jsonl", "`train_dataset` must be a list of rows, .* found str; read a file with `prism_plugin.data.read_rows`"),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_list([{"text": "ab"}])),
            r"`train_dataset` must be .* found DatasetDict with the splits train; choose one, such as `data\['train'\]`",
        ),
        ({"text": ["ab"]}, "`train_dataset` must be a list of rows, .* found dict; of columns by name make a data set"),
        (Path("rows.jsonl"), "`train_dataset` must be a list of rows, .* found PosixPath; read a file with"),
        ((row for row in ()), "`train_dataset` must be a list of rows, .* found generator; make a list of its rows"),
        ([{"text": "ab"}, "cd"], r"`train_dataset\[1\]` must be a mapping"),
        (torch.ones(2, 3), "The rows of `train_dataset` must be mappings .*, found Tensor"),
    ],
)
def test_what_is_no_data_set_is_refused(lab, rows, words):
    with pytest.raises(DataFormatError, match=words):
        as_prepared(rows, lab.build_model(), Origin("train_dataset"), get_objective("prism"))


def test_data_that_cannot_be_trained_on_is_refused(lab, tmp_path):
    with pytest.raises(DataFormatError, match="`train_dataset` holds no row"):
        lab.make_trainer(tmp_path, rows=[])
    with pytest.raises(DataFormatError, match=r"The rows of `train_dataset` need .*, found no maskable"):
        lab.make_trainer(tmp_path, rows=[{"example_id": 0, "input_ids": [3]}])
    positions = lab.build_model().config.max_position_embeddings
    longer = [{"example_id": i, "input_ids": [3] * (positions + i), "maskable": [True] * (positions + i)} for i in range(3)]
    for rows in (longer, datasets.Dataset.from_list(longer)):
        with pytest.raises(DataFormatError, match=f"must have at most {positions} tokens.* found {positions + 2}"):
            lab.make_trainer(tmp_path, rows=rows)
    for wrong in (-1, 32):
        foreign = [{"example_id": i, "input_ids": [3, wrong], "maskable": [True] * 2} for i in range(2)]
        for rows in (foreign, datasets.Dataset.from_list(foreign)):
            with pytest.raises(
                DataFormatError, match=f"must lie in the model's vocabulary, 0 to 31, found {wrong}; use the tok"
            ):
                lab.make_trainer(tmp_path, rows=rows)
    trainer = lab.make_trainer(tmp_path, rows=lab.make_rows(3))
    with pytest.raises(ConfigurationError, match=r"A step needs 4 rows .* but the training data has 3"):
        trainer.train()


def test_an_optimizer_with_groups_of_its_own_is_refused(lab, tmp_path):
    trainer = lab.make_trainer(tmp_path)
    trainer.optimizer_cls_and_kwargs = (torch.optim.AdamW, {"params": []})  # what Trainer makes of GaLore and its like
    with pytest.raises(ConfigurationError, match="`optim: adamw_torch_fused` chooses its own parameter groups"):
        trainer.train()


@pytest.mark.parametrize(("lora", "weight", "warned"), [(True, 0.0, True), (True, 0.5, False), (False, 0.0, False)])
def test_lora_that_only_judging_trains_is_warned_of(lab, tmp_path, monkeypatch, lora, weight, warned):
    said = []
    monkeypatch.setattr(checks.logger, "warning", said.append)
    lab.make_trainer(tmp_path, model=lab.build_model(lora=lora), objective=get_objective("prism", diffusion_weight=weight))
    assert any("it will fill masks worse than before" in one for one in said) == warned
