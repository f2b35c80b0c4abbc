"""Countdown: reach a number from given ones by equations, written as text (as in arXiv 2410.14157, section 4.1).

A row is `3,7,9=60:` and its answer `7*9=63,63-3=60`. Digits and signs of an answer depend on each other, so filling several of
them at one look makes slips that an equation shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from prism_plugin.backbones import pad_rows
from prism_plugin.data import read_lines
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.evaluation.tasks.countdown_numbers import LARGEST_RESULT, Problem, check, solutions
from prism_plugin.evaluation.tasks.task import TASKS, Figure, Heading
from prism_plugin.modeling import PrismModel
from prism_plugin.modeling.texts import pad_token_id
from prism_plugin.tokenizing import encode
from prism_plugin.types import TokenIds, TokenMask

CHARACTERS = "0123456789+-*/=,:"


@TASKS.register("countdown")
@dataclass(frozen=True)
class Countdown:
    """Reach a number from given ones, each used once, by true equations.

    Attributes:
        max_new_tokens: Tokens that an answer may have. None: as many as the longest answer has characters, and one for its
            end, which is right for a model of single characters.
    """

    rows_are: ClassVar[str] = "problems"
    data_is: ClassVar[str] = "problems, one a line, such as 3,7,9=60"
    figures: ClassVar[Mapping[str, Heading]] = {"success": Heading("solved"), "equations": Heading("equations true")}
    presets: ClassVar[tuple[str, ...]] = ("random", "remdm-conf", "prism", "confidence", "threshold", "prism-confidence")

    max_new_tokens: int | None = field(
        default=None, metadata={"help": "tokens of an answer (default: as many as the longest can have, of single characters)"}
    )

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigurationError(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens}.")

    def speaks(self, model: PrismModel) -> bool:
        """Whether a model's tokenizer knows Countdown's characters and no other token but special ones."""
        if model.tokenizer is None:
            return False
        return set(model.tokenizer.get_vocab()) - set(model.tokenizer.all_special_tokens) == set(CHARACTERS)

    def require_model(self, model: PrismModel) -> None:
        """Check that a model can be given texts, and can end one.

        Raises:
            ConfigurationError: If it has no tokenizer, or that has no token for the end of a text.
        """
        if getattr(model.tokenizer, "eos_token_id", None) is None:
            raise ConfigurationError(
                "Countdown is text, so the adapter needs a tokenizer with a token for the end of a text, and has none; give it "
                "its backbone's."
            )

    def rows(self, path: str | Path, limit: int | None = None) -> list[Problem]:
        """Read a file's problems.

        Raises:
            DataFormatError: If the file cannot be read or holds no problem; or a line is none, or has no solution; it is named.
        """
        found: list[Problem] = []
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            problem = Problem.parse(line)
            if problem is None:
                raise DataFormatError(
                    f"{path}, line {number}: a problem is numbers of 1 to {LARGEST_RESULT} and one to reach, such as 3,7,9=60, "
                    f"found {line.strip()[:60]!r}."
                )
            if not solutions(problem):
                raise DataFormatError(f"{path}, line {number}: {problem} has no solution; remove the line.")
            found.append(problem)
            if len(found) == limit:
                break
        if not found:
            raise DataFormatError(f"{path} holds no problem; write one a line, such as 3,7,9=60.")
        return found

    def canvas(self, rows: Sequence[Problem], model: PrismModel) -> tuple[TokenIds, TokenMask]:
        """The problems, each followed by masks for the longest answer."""
        prompts = [self._prompt(row, model) for row in rows]
        widths = [self._width(row) for row in rows]
        masks = [[*prompt, *[model.mask_token_id] * width] for prompt, width in zip(prompts, widths, strict=True)]
        return pad_rows(masks, pad_token_id(model))

    def judge(self, rows: Sequence[Problem], sequences: TokenIds, model: PrismModel) -> dict[str, Figure]:
        """Say which problems are solved, and how many of the answers' equations are true."""
        judged = []
        for row, ids in zip(rows, sequences.tolist(), strict=True):
            begin = len(self._prompt(row, model))
            judged.append(check(row, self._text(ids[begin : begin + self._width(row)], model)))
        count, true, solved = (torch.tensor(column) for column in zip(*judged, strict=True))
        return {"success": Figure.of_rows(solved), "equations": Figure(true, count)}

    def known(self, rows: Sequence[Problem], model: PrismModel) -> list[dict[str, Any]]:
        """Write problems as raw rows of their solutions, in which the problem may not be masked.

        Raises:
            DataFormatError: If one has several solutions, so that a right token could count as wrong; names it.
        """
        written = []
        for row in rows:
            found = solutions(row)
            if len(found) != 1:
                raise DataFormatError(
                    f"a problem must have one solution for its tokens to be judged, found {len(found)} for {row}."
                )
            written.append(self.written(row, found[0], model))
        return written

    def written(self, row: Problem, answer: str, model: PrismModel) -> dict[str, Any]:
        """A problem with an answer as a raw row, of the length that its canvas has."""
        prompt = self._prompt(row, model)
        tokens = list(encode(model.tokenizer, answer, DataFormatError, add_special_tokens=False)["input_ids"])
        end = self._width(row) - len(tokens)
        if end < 1:
            raise DataFormatError(f"{row}: the answer has {len(tokens)} tokens, so `max_new_tokens` must be more, got {self}.")
        ids = [*prompt, *tokens, *[model.tokenizer.eos_token_id] * end]
        return {"input_ids": ids, "maskable": [False] * len(prompt) + [True] * (len(ids) - len(prompt))}

    def symmetry(self, count: int, seed: int) -> None:
        """None: the order of numbers is fixed."""

    def layout(self, length: int) -> int | None:
        """A text."""
        return None

    def _prompt(self, row: Problem, model: PrismModel) -> list[int]:
        return list(encode(model.tokenizer, f"{row}:", DataFormatError, add_special_tokens=False)["input_ids"])

    def _width(self, row: Problem) -> int:
        """Each equation but the last has a comma after it; the last has the end."""
        return self.max_new_tokens or (len(row.numbers) - 1) * len("99+99=99,")

    def _text(self, ids: list[int], model: PrismModel) -> str:
        end = model.tokenizer.eos_token_id
        return model.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids).replace(" ", "")
