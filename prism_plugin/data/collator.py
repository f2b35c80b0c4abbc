"""Ragged rows -> rectangular tensors. No randomness: noise is drawn from the example ids where the batch is consumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_plugin.core.history import HISTORY
from prism_plugin.data.prepared import check_prepared
from prism_plugin.data.rows import require_list_of_rows
from prism_plugin.errors import ConfigurationError, DataFormatError


@dataclass(frozen=True)
class PrismCollator:
    """Pad prepared rows on the right to the longest of the batch.

    Padding is neither attended to nor maskable; to train on pads, let preparation write them (`pads: supervised`). Rows that
    bring an `attention_mask` of their own keep it: its zeros are padding too.

    Args:
        pad_token_id: Id written into the padding, >= 0. Any id will do, since nothing looks at it.
        pad_to_multiple_of: Round the length up to a multiple of this many positions, >= 1. Helps tensor cores and
            compiled models; changes no result.
        equal_lengths: Refuse rows that would need padding, for a model that takes no attention mask.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1
    equal_lengths: bool = False

    def __post_init__(self) -> None:
        if self.pad_token_id < 0:
            raise ConfigurationError(f"`pad_token_id` must not be negative, got {self.pad_token_id}.")
        if self.pad_to_multiple_of < 1:
            raise ConfigurationError(f"`pad_to_multiple_of` must be at least 1, got {self.pad_to_multiple_of}.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate prepared rows.

        Returns:
            `input_ids` and `attention_mask` (int64) and `maskable` (bool), each [batch, length], and `example_id`
            (int64), [batch]; and `draft_ids` (int64), [batch, length], if the rows have them, and their history if all have it.

        Raises:
            DataFormatError: If they are no list of prepared rows, must be equally long and are not, or only some have
                `draft_ids`.
        """
        require_list_of_rows(rows)
        if not len(rows):
            raise DataFormatError("A batch needs at least one row, found none.")
        for row in rows:
            check_prepared(row)
        with_drafts = [row.get("draft_ids") is not None for row in rows]
        if any(with_drafts) and not all(with_drafts):
            without = rows[with_drafts.index(False)]["example_id"]
            raise DataFormatError(
                f"All rows of a batch need `draft_ids`, or none; the one with `example_id` {without} has none and others have."
            )
        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids = {
            name: torch.full((len(rows), length), self.pad_token_id, dtype=torch.long)
            for name in ("input_ids", *(["draft_ids"] if all(with_drafts) else []))
        }
        history = _history(rows, length) if all(with_drafts) else {}
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        maskable = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            filled = len(row["input_ids"])
            for name, padded in ids.items():
                padded[index, :filled] = torch.as_tensor(row[name], dtype=torch.long)
            own = [True] * filled if row.get("attention_mask") is None else row["attention_mask"]
            own, may = (_flags(values, name, row) for name, values in (("attention_mask", own), ("maskable", row["maskable"])))
            attention_mask[index, :filled] = own
            maskable[index, :filled] = may & own
        if self.equal_lengths and not attention_mask.all():
            own = attention_mask.sum(-1)
            raise DataFormatError(
                "The model takes no attention mask, so all rows of a batch must be equally long, found rows of "
                f"{int(own.min())} and of {length} tokens; cut or fill them (`max_length`, `pads: supervised`)."
            )
        example_id = torch.tensor([int(row["example_id"]) for row in rows], dtype=torch.long)
        return {**ids, **history, "attention_mask": attention_mask, "maskable": maskable, "example_id": example_id}


def require_batch(batch: Mapping[str, Tensor], *, with_drafts: bool = False) -> None:
    """Check that a batch is one that `PrismCollator` makes, and not what a tokenizer gives.

    Args:
        batch: What was given.
        with_drafts: It must have `draft_ids` too.

    Raises:
        DataFormatError: If it is not.
    """
    if not isinstance(batch, Mapping):
        raise DataFormatError(f"A batch must be a mapping of names to tensors, found {type(batch).__name__}; collate rows.")
    needed = ("input_ids", "attention_mask", "maskable", "example_id", *(["draft_ids"] if with_drafts else []))
    if missing := [name for name in needed if not isinstance(batch.get(name), Tensor)]:
        raise DataFormatError(
            f"A batch needs {', '.join(needed)} as tensors, found no {', '.join(missing)}; make it with `PrismCollator`."
        )


def _history(rows: Sequence[Mapping[str, Any]], length: int) -> dict[str, Tensor]:
    """What the tokens of recorded drafts have been through, where every row tells it; padding was written by nobody."""
    if any(row.get(name) is None for row in rows for name in HISTORY):
        return {}
    found: dict[str, Tensor] = {}
    for name, nothing in zip(HISTORY, (-1, 1.0, 0), strict=True):
        found[name] = torch.full((len(rows), length), nothing)
        for index, row in enumerate(rows):
            found[name][index, : len(row[name])] = torch.as_tensor(row[name])
    return found


def _flags(values: Any, name: str, row: Mapping[str, Any]) -> Tensor:
    flags = torch.as_tensor(values)
    if not ((flags == 0) | (flags == 1)).all():
        raise DataFormatError(
            f"`{name}` of the row with `example_id` {row['example_id']} must hold true or false, or 1 or 0, found other values."
        )
    return flags.bool()
