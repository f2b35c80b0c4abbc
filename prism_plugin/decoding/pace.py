"""How far each row shall be: steps shared over blocks, what the schedule grants, and the next step that grants anything."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prism_plugin.core.schedules import Schedule
from prism_plugin.core.view import Budget
from prism_plugin.decoding.state import State
from prism_plugin.types import PerRow

_AHEAD = 64  # steps that are asked of a schedule at once, in search of the next that grants anything


def share_steps(num_steps: int, num_blocks: PerRow, block: PerRow) -> PerRow:
    """Steps that block number `block` gets when `num_steps` are shared over `num_blocks`, remainder first."""
    num_blocks = num_blocks.clamp(min=1)
    return num_steps // num_blocks + (block < num_steps % num_blocks)


@dataclass(frozen=True)
class Pace:
    """A schedule, asked about the blocks of a state.

    Attributes:
        schedule: How many positions are revealed and taken back.
        num_steps: Steps over all blocks.
        reaches_back: Blocks that were begun before the active one may be decided about too.
        takes_back: Tokens may be masked again, so a step that grants nothing else is worth a look.
        revises: Tokens may be overwritten, so a step is worth a look wherever one stands.
    """

    schedule: Schedule
    num_steps: int
    reaches_back: bool
    takes_back: bool
    revises: bool = False

    def block_steps(self, state: State, block: PerRow | None = None) -> PerRow:
        """Steps of a block of each row; None: of the active one."""
        return share_steps(self.num_steps, state.canvas.num_blocks, state.block if block is None else block)

    def grant(self, state: State, visible: PerRow) -> tuple[Budget, PerRow, PerRow]:
        """What the active block is granted at its step, its steps in all, and the positions to reveal in all.

        Args:
            state: Where every row stands.
            visible: Positions in reach that hold a token.
        """
        num_steps = self.block_steps(state)
        goal, owed = self._goals(state, state.block)
        return self._ask(goal, owed, state.step, num_steps, visible), num_steps, goal + owed

    def is_worth_a_look(self, budget: Budget, masked: PerRow, visible: PerRow) -> Tensor:
        """Whether something could be revealed or taken back."""
        worth = (budget.target > visible) & (masked > 0)
        if self.takes_back:
            worth = worth | (budget.remask > 0)
        return worth | (visible > 0) if self.revises else worth

    def seek(self, state: State, block: PerRow, step: PerRow, masked: PerRow, visible: PerRow) -> PerRow:
        """The first of the next steps that is worth a look; the one after those that were asked about if none is.

        Schedules are pure, so several steps are asked at once; the block's end is the most that is given. A step that would
        grant nothing costs no forward.
        """
        num_steps = self.block_steps(state, block)
        count = min(_AHEAD, self.num_steps)
        steps = step.unsqueeze(-1) + torch.arange(count, device=step.device)
        goal, owed, in_block, masked, visible = (
            one.repeat_interleave(count) for one in (*self._goals(state, block), num_steps, masked, visible)
        )
        budget = self._ask(goal, owed, steps.flatten(), in_block, visible)
        worth = self.is_worth_a_look(budget, masked, visible).view_as(steps)
        return torch.where(worth, steps, (step + count).unsqueeze(-1)).amin(-1).minimum(num_steps)

    def _ask(self, goal: PerRow, owed: PerRow, step: PerRow, num_steps: PerRow, visible: PerRow) -> Budget:
        budget = self.schedule(step, num_steps, goal, (visible - owed).clamp(min=0))
        return replace(budget, target=budget.target + owed) if self.reaches_back else budget

    def _goals(self, state: State, block: PerRow) -> tuple[PerRow, PerRow]:
        """Positions to reveal in a block, and those of the blocks before it that are in reach, which are owed whole."""
        nothing = torch.zeros_like(block)
        blocks = state.goal.shape[1]
        if blocks == 0:
            return nothing, nothing
        goal = state.goal.gather(1, block.clamp(max=blocks - 1).unsqueeze(-1)).squeeze(-1)
        if not self.reaches_back:
            return goal, nothing
        before = torch.arange(blocks, device=block.device) < block.unsqueeze(-1)
        return goal, (state.goal * before).sum(-1)
