"""Code: functions that a model completes, judged by running their tests."""

import ast
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from prism_plugin.core.validation import require_number
from prism_plugin.data import read_rows
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.evaluation.tasks.code_running import Outcome, require_runs, run_confined
from prism_plugin.evaluation.tasks.task import TASKS, Figure, Heading
from prism_plugin.evaluation.tasks.written import read_written, require_tokenizer
from prism_plugin.modeling import PrismModel
from prism_plugin.modeling.texts import pad_token_id
from prism_plugin.sampling.prompts import LaidPrompts, lay_prompts
from prism_plugin.types import TokenIds, TokenMask

# Where an answer ends, besides at its EOS token: with what comes after the function. Those of the papers (arXiv 2107.03374,
# 2108.07732) and of bigcode-evaluation-harness.
_STOPS = ("\nclass", "\nprint", "\nif", "\n```")
_AFTER_A_BODY = (*_STOPS, "\ndef", "\n#", "\n@")
_AFTER_A_PROGRAM = (*_STOPS, "\nassert", '\n"""', "\n<|/")


@dataclass(frozen=True)
class Function:
    """A row of the task: what is given, what the answer must pass, where it stops, and an answer that is right, if known."""

    name: str
    prompt: str
    tests: str
    stops: tuple[str, ...]
    solution: str | None

    def completed(self, answer: str) -> str:
        """The program that an answer makes: up to the first of the stops."""
        return self.prompt + answer[: min([place for stop in self.stops if (place := answer.find(stop)) >= 0], default=None)]


@TASKS.register("code")
@dataclass(frozen=True)
class Code:
    """Write functions that pass their tests. One answer a row, so that the share of those that pass is pass@1.

    Answers are programs of a model, and judging them means running them: only with `allow_code_execution`, each in a process of
    its own with limits. That is no sandbox. Rows are those of HumanEval (`prompt`, `test`, `entry_point`, maybe
    `canonical_solution`) or of MBPP (`text` or `prompt`, `test_list`, maybe `code`, and `test_setup_code` or `test_imports`),
    each with a `task_id`. Other keys are not read. Tests may use the standard library alone.
    """

    rows_are: ClassVar[str] = "functions"
    data_is: ClassVar[str] = "functions with tests, JSON lines as of HumanEval or MBPP"
    figures: ClassVar[Mapping[str, Heading]] = {"success": Heading("pass"), "parses": Heading("parse")}
    presets: ClassVar[tuple[str, ...]] = ("random", "prism", "confidence", "threshold", "prism-confidence")

    allow_code_execution: bool = field(
        default=False, metadata={"help": "run what the model writes: with limits, but in no sandbox (needed)"}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "tokens of an answer"})
    seconds: float = field(default=5.0, metadata={"help": "seconds that an answer and its tests may take"})
    memory_mb: int = field(default=512, metadata={"help": "MiB of memory that they may ask for"})

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "memory_mb"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        require_number(self, "seconds", "a number above 0", low=0, open_low=True)

    def speaks(self, model: PrismModel) -> bool:
        """No tokens are this task's alone."""
        return False

    def require_model(self, model: PrismModel) -> None:
        """Check that a model has a tokenizer.

        Raises:
            ConfigurationError: If it has none.
        """
        require_tokenizer(model, "code")

    def rows(self, path: str | Path, limit: int | None = None) -> list[Function]:
        """Read functions, and check that programs can be run.

        Raises:
            ConfigurationError: If they may not be run, or cannot within the limits.
            DataFormatError: If the file cannot be read, or a row lacks something; names it.
        """
        self._require_leave()
        read = read_rows(str(path))
        chosen = read.select(range(min(len(read), limit or len(read))))
        found = [_function(row, f"{path}, row {number}") for number, row in enumerate(chosen, start=1)]
        require_runs(seconds=self.seconds, memory_mb=self.memory_mb)
        return found

    def canvas(self, rows: Sequence[Function], model: PrismModel) -> tuple[TokenIds, TokenMask]:
        """The prompts, each followed by as many masks."""
        laid = self._lay(rows, model)
        return laid.input_ids, laid.attention_mask

    def judge(self, rows: Sequence[Function], sequences: TokenIds, model: PrismModel) -> dict[str, Figure]:
        """Run the answers."""
        answers = read_written(model, self._lay(rows, model), sequences, self.max_new_tokens)
        outcomes = [self.outcome(row, one.answer) for row, one in zip(rows, answers, strict=True)]
        return {
            "success": Figure.of_rows(torch.tensor([one.passes for one in outcomes])),
            "parses": Figure.of_rows(torch.tensor([one.parses for one in outcomes])),
        }

    def outcome(self, row: Function, answer: str) -> Outcome:
        """Run one answer, up to the first of the usual stops.

        Raises:
            ConfigurationError: If it may not be run.
        """
        self._require_leave()
        return run_confined(row.completed(answer), row.tests, seconds=self.seconds, memory_mb=self.memory_mb)

    def known(self, rows: Sequence[Function], model: PrismModel | None = None) -> list[dict[str, Any]]:
        """Write functions as raw rows of the solutions that came with them, which are right but not alone in that.

        Raises:
            DataFormatError: If a row has none; names it.
        """
        for row in rows:
            if row.solution is None:
                raise DataFormatError(f"{row.name} must say a solution, `canonical_solution` or `code`, found none; add it.")
        return [{"prompt": row.prompt, "completion": row.solution} for row in rows]

    def symmetry(self, count: int, seed: int) -> None:
        """None: what is right changes with any change of a text."""

    def layout(self, length: int) -> int | None:
        """A text."""
        return None

    def _require_leave(self) -> None:
        if not self.allow_code_execution:
            raise ConfigurationError(
                "The task `code` runs programs that the model writes, with limits but in no sandbox; allow it with "
                "`allow_code_execution=True`, on a machine where nothing can be lost."
            )

    def _lay(self, rows: Sequence[Function], model: PrismModel) -> LaidPrompts:
        ids = {"mask_token_id": model.mask_token_id, "pad_token_id": pad_token_id(model)}
        prompts = [row.prompt for row in rows]
        return lay_prompts(require_tokenizer(model, "code"), prompts, max_new_tokens=self.max_new_tokens, **ids)


def _function(row: Mapping[str, Any], source: str) -> Function:
    """Read a row of either form."""
    given = {key: value for key, value in row.items() if value is not None}
    name = f"{source} ({given['task_id']})" if "task_id" in given else source
    of_humaneval = {"prompt", "test", "entry_point"} <= given.keys()
    if not of_humaneval and not ("test_list" in given and given.keys() & {"text", "prompt"}):
        raise DataFormatError(
            f"{name}: a function needs `prompt`, `test` and `entry_point` as of HumanEval, or `text` and `test_list` as of "
            f"MBPP, found {', '.join(given) or 'nothing'}."
        )
    made = _of_humaneval(given, name) if of_humaneval else _of_mbpp(given, name)
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(made.tests)
    except (SyntaxError, ValueError) as error:
        raise DataFormatError(f"{name}: tests must be Python, but {error}.") from error
    return made


def _of_humaneval(row: Mapping[str, Any], name: str) -> Function:
    prompt, test, entry_point = (_text(row, key, name) for key in ("prompt", "test", "entry_point"))
    if not entry_point.isidentifier():
        raise DataFormatError(f"{name}: `entry_point` must name a function, found {entry_point[:60]!r}.")
    solution = _text(row, "canonical_solution", name) if "canonical_solution" in row else None
    return Function(name, prompt, f"{test}\n\ncheck({entry_point})\n", _AFTER_A_BODY, solution)


def _of_mbpp(row: Mapping[str, Any], name: str) -> Function:
    """The description and one of the tests are a docstring before the program, as InCoder asks (arXiv 2204.05999)."""
    description, tests = _text(row, "text" if "text" in row else "prompt", name), _lines(row, "test_list", name)
    if not tests:
        raise DataFormatError(f"{name}: `test_list` must hold a test, found none.")
    setup = [_text(row, "test_setup_code", name)] if "test_setup_code" in row else _lines(row, "test_imports", name)
    solution = _text(row, "code", name) if "code" in row else None
    prompt = f'"""\n{description}\n{tests[0]}\n"""\n'
    return Function(name, prompt, "\n".join([*setup, *tests]), _AFTER_A_PROGRAM, solution)


def _text(row: Mapping[str, Any], key: str, name: str) -> str:
    if not isinstance(row[key], str):
        raise DataFormatError(f"{name}: `{key}` must be text, found {type(row[key]).__name__}.")
    return row[key]


def _lines(row: Mapping[str, Any], key: str, name: str) -> list[str]:
    lines = row.get(key, [])
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise DataFormatError(f"{name}: `{key}` must list texts, found {lines!r:.60}.")
    return lines
