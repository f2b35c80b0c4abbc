"""Tasks by name; importing this registers those of the package."""

from prism_plugin.evaluation.tasks.countdown import Countdown
from prism_plugin.evaluation.tasks.sudoku import Sudoku
from prism_plugin.evaluation.tasks.task import TASKS, Figure, Heading, Task, task_of

__all__ = ["TASKS", "Countdown", "Figure", "Heading", "Sudoku", "Task", "task_of"]
