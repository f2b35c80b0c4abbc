"""Countdown: what is an answer, which problems have one, and what is read of a file."""

import itertools
import random

import pytest
import torch

from prism_plugin.backbones import load_tokenizer
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.evaluation.tasks import Countdown
from prism_plugin.evaluation.tasks.countdown_numbers import OPERATIONS, Problem, check, draw, solutions
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone

TASK = Countdown()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = tiny_backbone("llama", vocab_size=19)
    tokenizer = load_tokenizer("adapters/countdown/backbone")
    return attach_quality_head(backbone, PrismConfig(mask_token_id=18), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("7*9=63,63-3=60", (2, 2, True)),
        ("9*7=63,63-3=60", (2, 2, True)),  # the order of operands is a matter of taste
        ("7*9=63,63-3=61", (2, 1, False)),
        ("7*9=62,62-3=59", (2, 1, False)),
        ("7*9=63,63-7=56", (2, 2, False)),  # 7 was used already
        ("7*9=63", (1, 1, False)),
        ("9-7=2,30*2=60", (2, 2, False)),  # nobody gave a 30
        ("7+9=16,", (2, 1, False)),
        ("07*9=63,63-3=60", (2, 1, False)),
        ("7*9=63=63", (1, 0, False)),
        ("3-9=-6", (1, 0, False)),
        ("", (1, 0, False)),
    ],
)
def test_an_answer_is_computed(answer, expected):
    assert check(Problem((3, 7, 9), 60), answer) == expected


def test_solutions_are_those_of_a_walk_over_all_texts():
    """Every pair of equations that numbers and signs can make, checked one by one."""
    problem = Problem((2, 3, 4), 10)
    found = set()
    for first, second, third in itertools.permutations(problem.numbers):
        for one, two in itertools.product(OPERATIONS, repeat=2):
            for made, last in itertools.product(range(1, 100), (10,)):
                for left, right in ((made, third), (third, made)):
                    text = f"{first}{one}{second}={made},{left}{two}{right}={last}"
                    if first >= second and left >= right and check(problem, text)[2]:
                        found.add(text)
    assert set(solutions(problem)) == found
    assert len(solutions(problem)) == len(found)


def test_what_is_drawn_is_solved_by_what_it_was_made_by():
    rng = random.Random(0)
    drawn = [draw(rng, 3, 20) for _ in range(200)]
    assert all(check(problem, answer) == (2, 2, True) for problem, answer in drawn)
    assert all(answer in solutions(problem) for problem, answer in drawn)
    assert draw(random.Random(1), 4, 9) == draw(random.Random(1), 4, 9)
    held_out = sum(problem.is_held_out for problem, _ in drawn)
    assert 5 <= held_out <= 40  # one in ten


def test_a_row_goes_through_canvas_and_back(model, tmp_path):
    (tmp_path / "problems.txt").write_text("9,3,7=60\n\n 4,8,8=24 \n")
    rows = TASK.rows(tmp_path / "problems.txt")
    assert [str(row) for row in rows] == ["3,7,9=60", "4,8,8=24"]
    ids, mask = TASK.canvas(rows, model)
    assert model.tokenizer.decode(ids[0]).replace(" ", "") == "3,7,9=60:" + "[MASK]" * 18
    answers = ids.clone()
    for row, text in enumerate(("9*7=63,63-3=60", "8+8=16,16+4=21")):
        tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        answers[row, 9 : 9 + len(tokens)] = torch.tensor(tokens)
        answers[row, 9 + len(tokens) :] = model.tokenizer.eos_token_id
    figures = TASK.judge(rows, answers, model)
    assert mask.all()
    assert figures["success"].total.tolist() == [True, False]
    assert figures["equations"].value == 0.75

    (known,) = TASK.known([Problem((3, 7, 9), 60)], model)
    assert known["input_ids"] == answers[0].tolist()
    assert known["maskable"] == [False] * 9 + [True] * 18
    with pytest.raises(DataFormatError, match=r"must have one solution for its tokens to be judged, found \d+ for 2,3,4=10"):
        TASK.known([Problem((2, 3, 4), 10)], model)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("3,7,9", "line 2: a problem is numbers of 1 to 99 and one to reach, such as 3,7,9=60, found '3,7,9'"),
        ("3,0,9=6", "line 2: a problem is numbers of 1 to 99"),
        ("3,7,nine=60", "line 2: a problem is numbers of 1 to 99"),
        ("1,1,1=99", "line 2: 1,1,1=99 has no solution; remove the line"),
    ],
)
def test_a_line_that_is_no_problem_is_named(tmp_path, line, words):
    (tmp_path / "problems.txt").write_text(f"3,7,9=60\n{line}\n")
    with pytest.raises(DataFormatError, match=words):
        TASK.rows(tmp_path / "problems.txt")
    assert len(TASK.rows(tmp_path / "problems.txt", 1)) == 1


def test_a_file_without_a_problem_and_a_model_without_texts(tmp_path):
    (tmp_path / "problems.txt").write_text("\n")
    with pytest.raises(DataFormatError, match=r"problems\.txt holds no problem; write one a line"):
        TASK.rows(tmp_path / "problems.txt")
    bare = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31))
    assert not TASK.speaks(bare)
    with pytest.raises(ConfigurationError, match="needs a tokenizer with a token for the end of a text, and has none"):
        TASK.require_model(bare)
    with pytest.raises(ConfigurationError, match="`max_new_tokens` must be at least 1, got 0"):
        Countdown(max_new_tokens=0)
