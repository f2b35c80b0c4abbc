"""What rows, and each of them, are called in messages: as the reader can type it, or find it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Where rows come from.

    Args:
        name: What holds them: an argument such as `train_dataset`, a file, or a data set on the Hub.
        counted: They are counted from 1, as the lines of a file are. Otherwise a row is called as Python has it, `rows[3]`.
    """

    name: str
    counted: bool = False

    def __str__(self) -> str:
        return self.name if self.counted else f"`{self.name}`"

    def row(self, index: int) -> str:
        """What the row of an index, from 0, is called."""
        return f"{self.name}, row {index + 1}" if self.counted else f"`{self.name}[{index}]`"


IN_MEMORY = Origin("rows")
