"""What people pass to a trainer from Python: it works, or is refused in one sentence."""

import datasets
import pandas
import pytest
import torch
from transformers import TrainingArguments

from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.training import PrismTrainer, PrismTrainingArguments, get_objective

TEXTS = ["abcd", "bcde", "cdef", "abab"] * 2
ROWS = [{"text": text} for text in TEXTS]


@pytest.fixture
def trainer_of(lab, tmp_path):
    def make(rows=ROWS, **given):
        args = given.pop("args", None) or PrismTrainingArguments(
            str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=3, per_device_train_batch_size=4, save_strategy="no"
        )
        return PrismTrainer(lab.build_model(tokenizer=tiny_tokenizer()), args, train_dataset=rows, **given)

    return make


def measured(figures):
    return {name: value for name, value in figures.items() if "_" in name and "time" not in name and "second" not in name}


def same(figures):
    return pytest.approx(figures, nan_ok=True)


def test_what_cannot_be_trained_is_one_sentence(lab, trainer_of):
    with pytest.raises(ConfigurationError, match=r"must be a PrismModel, .* found BertForMaskedLM; make one by `attach"):
        PrismTrainer(tiny_backbone())
    for args, found in ((None, "NoneType"), ({"output_dir": "x"}, "dict")):
        with pytest.raises(ConfigurationError, match=f"`args` must be PrismTrainingArguments, found {found}; make them"):
            PrismTrainer(lab.build_model(), args)
    with pytest.raises(ConfigurationError, match="must be an Objective, its name, or a mapping of its settings, found int"):
        trainer_of(objective=3)


def test_an_objective_may_be_a_name_or_a_mapping(trainer_of):
    assert trainer_of(objective="prism").objective == get_objective("prism")
    assert trainer_of(objective={"name": "prism", "num_drafted": 2}).objective == get_objective("prism", num_drafted=2)


def test_transformers_own_arguments_will_do(trainer_of, tmp_path):
    plain = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=2, learning_rate=1e-3, optim="sgd", eval_strategy="no")
    args = trainer_of(args=plain).args
    assert (args.max_steps, args.learning_rate, args.optim.value, args.remove_unused_columns) == (2, 1e-3, "sgd", False)
    assert (
        args.to_dict()
        == PrismTrainingArguments(
            str(tmp_path), use_cpu=True, max_steps=2, learning_rate=1e-3, optim="sgd", eval_strategy="no"
        ).to_dict()
    )
    with pytest.raises(ConfigurationError, match="`label_smoothing_factor` must be"):
        trainer_of(args=TrainingArguments(str(tmp_path), use_cpu=True, label_smoothing_factor=0.1))


@pytest.mark.parametrize("rows", [TEXTS, tuple(TEXTS), pandas.DataFrame(ROWS), datasets.Dataset.from_list(ROWS)])
def test_rows_may_be_texts_or_tables(trainer_of, rows):
    assert list(trainer_of(rows).train_dataset) == list(trainer_of().train_dataset)


def test_a_table_of_what_is_no_text_is_refused(trainer_of):
    with pytest.raises(DataFormatError, match=r"`train_dataset` must hold texts, numbers, .* found something else"):
        trainer_of(pandas.DataFrame({"text": [object(), "a"]}))


def test_an_evaluation_takes_rows_as_training_does(trainer_of):
    trainer = trainer_of(eval_dataset={"one": ROWS[:5], "two": TEXTS[5:]})
    figures = measured(trainer.evaluate())
    assert {name.split("_")[1] for name in figures} == {"one", "two"}
    alone = measured(trainer.evaluate(ROWS[:5]))
    of_one = {name: value for name, value in figures.items() if "one" in name}
    assert alone == same({name.replace("one_", ""): value for name, value in of_one.items()})
    splits = datasets.DatasetDict({"one": datasets.Dataset.from_list(ROWS[:5])})
    assert measured(trainer.evaluate(splits)) == same(of_one)
    predicted = measured(trainer.predict(TEXTS[:5]).metrics)
    assert predicted == same({name.replace("eval", "test"): value for name, value in alone.items()})
    with pytest.raises(DataFormatError, match=r"`eval_dataset\['one'\]\[1\]` must be a mapping .*, found int"):
        trainer.evaluate({"one": [ROWS[0], 3]})
    with pytest.raises(DataFormatError, match=r"`eval_dataset` must be a list of rows, .* dict; of columns by name make"):
        trainer.evaluate({"text": TEXTS})


def test_the_best_checkpoint_is_that_of_one_of_several_sets(tmp_path, trainer_of):
    def args(best):
        return PrismTrainingArguments(str(tmp_path), use_cpu=True, metric_for_best_model=best)

    sets = {"one": ROWS[:5], "two": ROWS[5:]}
    with pytest.raises(ConfigurationError, match=r"must be one of one_loss, .*, two_quality_brier, which .* got 'loss'"):
        trainer_of(args=args("loss"), eval_dataset=sets)
    assert trainer_of(args=args("eval_two_loss"), eval_dataset=sets).eval_dataset.keys() == sets.keys()


def test_figures_of_ones_own_are_measured_too(trainer_of):
    seen = []

    def count(evaluated):
        (quality, losses), targets = evaluated.predictions, evaluated.label_ids
        seen.append((quality.shape[0], losses.shape, targets.shape[:2] == quality.shape))
        return {"judged": int((targets >= 0).sum())}

    trainer = trainer_of(eval_dataset=ROWS[:5], compute_metrics=count)
    figures = trainer.evaluate()
    assert seen == [(5, (5, 2), True)]
    assert figures["eval_judged"] > 0
    assert "eval_quality_auroc" in figures
    with pytest.raises(ConfigurationError, match="must give names of its own, but loss is measured already"):
        trainer_of(eval_dataset=ROWS[:5], compute_metrics=lambda evaluated: {"loss": 0.0}).evaluate()
    with pytest.raises(ConfigurationError, match="`compute_metrics` must give a mapping of names to figures, found float"):
        trainer_of(eval_dataset=ROWS[:5], compute_metrics=lambda evaluated: 0.0).evaluate()


def test_the_tokenizer_may_come_with_the_trainer(lab, tmp_path, trainer_of):
    model, tokenizer = lab.build_model(), tiny_tokenizer()
    args = PrismTrainingArguments(str(tmp_path), use_cpu=True)
    trainer = PrismTrainer(model, args, train_dataset=ROWS, processing_class=tokenizer)
    assert model.tokenizer is tokenizer
    assert list(trainer.train_dataset) == list(trainer_of().train_dataset)
    other = tiny_tokenizer()
    other.add_tokens(["abc"])
    with pytest.raises(ConfigurationError, match="`processing_class` must be the tokenizer of the model, but the model"):
        trainer_of(processing_class=other)


def test_a_run_shorter_than_the_logging_interval_tells_its_loss(trainer_of):
    torch.manual_seed(0)
    trainer = trainer_of()
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    assert log["step"] == 3
    assert {"quality_loss", "diffusion_loss"} <= set(log)
