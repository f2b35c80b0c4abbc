"""Scripts that make the shipped Sudoku model and measure its quality."""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "adapters" / "sudoku-9x9"
