"""Ragged rows -> rectangular tensors. No randomness: noise is drawn from the example ids where the batch is consumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_plugin.errors import ConfigurationError, DataFormatError


@dataclass(frozen=True)
class PrismCollator:
    """Pad prepared rows on the right to the longest of the batch.

    Padding is neither attended to nor maskable; to train on pads, let preparation write them (`pads: supervised`).

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
            (int64), [batch].

        Raises:
            DataFormatError: If rows must be equally long and are not.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shortest = min(len(row["input_ids"]) for row in rows)
        if self.equal_lengths and shortest < length:
            raise DataFormatError(
                "The model takes no attention mask, so all rows of a batch must be equally long, found rows of "
                f"{shortest} and of {length} tokens; cut or fill them (`max_length`, `pads: supervised`)."
            )
        input_ids = torch.full((len(rows), length), self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        maskable = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            filled = len(row["input_ids"])
            input_ids[index, :filled] = torch.as_tensor(row["input_ids"], dtype=torch.long)
            attention_mask[index, :filled] = 1
            maskable[index, :filled] = torch.as_tensor(row["maskable"], dtype=torch.bool)
        example_id = torch.tensor([int(row["example_id"]) for row in rows], dtype=torch.long)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "maskable": maskable, "example_id": example_id}
