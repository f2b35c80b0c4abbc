"""What tokens have been through, from recorded rows to the head that is trained on it."""

import pytest
import torch

from prism_plugin.core.history import HISTORY
from prism_plugin.data import Origin
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.training import get_objective
from prism_plugin.training.given_rows import as_prepared

RECORDED = get_objective("prism_recorded")


def rows_with_history(lab, **changed):
    """Recorded rows: the second maskable token was written three looks ago, what follows is given or masked."""
    rows = lab.recorded_rows(6)
    for row in rows:
        size = len(row["input_ids"])
        row |= {"age": [-1] * size, "commit_confidence": [1.0] * size, "times_remasked": [0] * size}
        row["age"][3], row["commit_confidence"][3], row["draft_ids"][3] = 3, 0.25, 5
    return [{**row, **{name: [value] * len(row["input_ids"]) for name, value in changed.items()}} for row in rows]


def prepared(lab, rows, **head):
    model = lab.build_model(**head)
    rows = [{name: value for name, value in row.items() if name != "example_id"} for row in rows]
    return model, as_prepared(rows, model, Origin("rows"), RECORDED)


def test_the_head_sees_the_history_of_the_rows_that_show_it(lab, monkeypatch):
    model, rows = prepared(lab, rows_with_history(lab), head_history=HISTORY)
    seen, forward = [], model.quality_head.forward
    monkeypatch.setattr(
        model.quality_head, "forward", lambda *args, **how: seen.append(how["history"]) or forward(*args, **how)
    )
    output = RECORDED.step(model, lab.collate(list(rows)), epoch=0, seed=1, unwrapped=model)
    (history,) = [one for one in seen if one is not None]
    assert history.age[:, 3].tolist() == [3] * 6
    assert history.commit_confidence[:, 3].tolist() == [0.25] * 6
    assert 0 < history.known.sum() < 6
    labels, at = output.terms["quality"].labels, output.draft
    for row in range(6):
        judged = labels.labelled[row].nonzero().flatten().tolist()
        assert judged == ([3] if history.known[row] else at.visible[row].nonzero().flatten().tolist())


@pytest.mark.parametrize("where", ["drafted", "visible", "all"])
def test_no_given_token_is_judged_beside_its_history(lab, where):
    model, rows = prepared(lab, rows_with_history(lab), head_history=("age",))
    objective = get_objective("prism_recorded", quality_where=where, history_hidden=0.0)
    at = (output := objective.step(model, lab.collate(list(rows)), epoch=0, seed=1, unwrapped=model)).draft
    assert torch.equal(output.terms["quality"].labels.labelled & at.visible, at.visible & (at.history.age >= 0))


def test_rows_without_a_whole_history_are_refused(lab):
    rows = rows_with_history(lab)
    for missing in ({"age"}, set(HISTORY)):
        some = [{name: value for name, value in row.items() if name not in missing} for row in rows]
        with pytest.raises(DataFormatError, match=r"`head_history` needs the columns age, .* but `rows` has no age"):
            prepared(lab, some, head_history=("age",))
    assert "age" not in prepared(lab, rows)[1].column_names, "a head without history is not given any"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"age": -2}, r"`age` must hold integers of at least -1, found -2"),
        ({"age": 0.5}, r"`age` must hold integers of at least -1, found 0.5"),
        ({"commit_confidence": 1.5}, r"`commit_confidence` must hold probabilities in \[0, 1\], found 1.5"),
        ({"commit_confidence": float("nan")}, r"`commit_confidence` must hold probabilities in \[0, 1\], found nan"),
        ({"times_remasked": -1}, r"`times_remasked` must hold integers of at least 0, found -1"),
    ],
)
def test_a_history_that_cannot_be_is_refused(lab, changed, message):
    with pytest.raises(DataFormatError, match=message):
        prepared(lab, rows_with_history(lab, **changed), head_history=("age",))


@pytest.mark.parametrize(
    ("objective", "head", "message"),
    [
        ("backplay", {"head_history": ("age",)}, r"reads its tokens' history \(age\), which LookBack, .* does not know"),
        ({"name": "prism", "history_hidden": 0.1}, {}, r"`history_hidden` is 0.1, but no history is read here"),
        (
            {"name": "prism", "history_hidden": 1.0},
            {"head_history": ("age",)},
            r"the head would never see a history",
        ),
    ],
)
def test_settings_of_a_history_that_nobody_sees_are_refused(lab, tmp_path, objective, head, message):
    model = lab.build_model(lora=objective != "backplay", **head)
    with pytest.raises(ConfigurationError, match=message):
        lab.make_trainer(tmp_path, model=model, objective=objective)
