"""From files and rows to what the trainer eats: reading, tokenising, marking what may be masked, padding."""

from prism_plugin.data.collator import PrismCollator
from prism_plugin.data.preparation import DataSettings, check_prepared, fingerprint, longest_row, prepare_rows
from prism_plugin.data.reading import read_rows

__all__ = ["DataSettings", "PrismCollator", "check_prepared", "fingerprint", "longest_row", "prepare_rows", "read_rows"]
