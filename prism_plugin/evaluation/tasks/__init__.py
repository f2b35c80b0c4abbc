"""Tasks by name; importing this registers those of the package."""

from prism_plugin.evaluation.tasks.code import Code
from prism_plugin.evaluation.tasks.countdown import Countdown
from prism_plugin.evaluation.tasks.sudoku import Sudoku
from prism_plugin.evaluation.tasks.task import TASKS, Figure, Heading, Task, task_of
from prism_plugin.evaluation.tasks.text import Text

__all__ = ["TASKS", "Code", "Countdown", "Figure", "Heading", "Sudoku", "Task", "Text", "task_of"]
