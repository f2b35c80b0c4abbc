"""Learn in which order masks are best filled: a policy on Sudoku, by policy gradient (after arXiv 2512.09106).

A puzzle is filled several times, each time in an order drawn from the policy. What came out better than the mean becomes more
likely. The reward is the task's own check; or, with `--verifier-free`, the mean quality that the head gives the full grid.
The backbone and its head are the shipped ones, and only the policy's 11 thousand numbers are trained. By default a few puzzles
are drawn and a few steps made, to show how it is done. The figures of docs/sampling.md are of

    python examples/09_an_unmasking_policy.py --updates 200 --puzzles 32 --test 1000 --output policy.safetensors

Prints: with the policy and without, each puzzle took the same number of looks
"""

import argparse
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import prism_plugin as prism
from prism_plugin.core import select_top
from prism_plugin.decoding import UnmaskingPolicy, gumbel, log_probability
from prism_plugin.evaluation.tasks import TASKS

SHIPPED = Path(__file__).resolve().parents[1] / "adapters" / "sudoku-9x9"
GROUP = 8  # orders of each puzzle that are compared
TEMPERATURE = 0.3  # of the orders that are drawn; they have to be nearly as good as the best to learn from


@dataclass(frozen=True, eq=False)
class DrawnOrder:
    """Draws an order from a policy that is being trained, and keeps what it saw and chose at each look."""

    policy: UnmaskingPolicy
    looks: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        """What the policy reads, and chance."""
        return self.policy.needs | {"noise"}

    @torch.no_grad()
    def __call__(self, view: Any, budget: torch.Tensor) -> torch.Tensor:
        features = self.policy.features(view, budget)
        scores = self.policy(features).masked_fill(~view.masked, -torch.inf) / TEMPERATURE + gumbel(view.noise)
        order = scores.argsort(-1, descending=True)[:, : int(budget.max())]
        behind = torch.arange(order.shape[1]) >= budget.unsqueeze(-1)
        self.looks.append((features, view.masked, order.masked_fill(behind, -1)))
        return select_top(scores, view.masked, budget)


def drawn_puzzles(task: Any, rows: list[Any], count: int, seed: int) -> list[Any]:
    """Some puzzles, each with its digits renamed and its lines exchanged, so that there are as many as one likes."""
    chosen = [rows[number] for number in torch.randint(len(rows), (count,)).tolist()]
    turned = task.symmetry(count, seed)
    cells, solutions = (turned.move_tokens(torch.stack([getattr(row, one) for row in chosen])) for one in ("cells", "solution"))
    return [replace(row, cells=one, solution=other) for row, one, other in zip(chosen, cells, solutions, strict=True)]


def rewards(task: Any, rows: list[Any], output: Any, model: prism.PrismModel, verifier_free: bool) -> torch.Tensor:
    """What each cell that was filled is worth in the end, [rows, cells]: the mean over a grid is its reward.

    By the task's check 1 where the digit is right, and 1 more where the whole grid is; verifier-free the head's quality.
    """
    if verifier_free:
        with torch.no_grad():
            return model(output.sequences).quality_logits.float().sigmoid()
    solutions = torch.stack([row.solution for row in rows])
    success = task.judge(rows, output.sequences, model)["success"].total
    return (output.sequences == solutions).float() + success.unsqueeze(-1)


def update(policy: UnmaskingPolicy, looks: list[tuple[torch.Tensor, ...]], worth: torch.Tensor, optimizer: Any) -> float:
    """One step up the gradient of the expected reward: REINFORCE, against the mean of the puzzle's other orders.

    A look is to blame for what it fills and for what is filled after it, not for what stood before.
    """
    optimizer.zero_grad()
    filled = looks[0][1].sum(-1)
    for features, masked, order in looks:
        to_come = ((worth * masked).sum(-1) / filled).view(-1, GROUP)
        advantage = (to_come - to_come.mean(-1, keepdim=True)).flatten() / to_come.std().clamp(min=1e-6)
        scores = policy(features).masked_fill(~masked, -torch.inf) / TEMPERATURE
        (-(advantage * log_probability(scores, order)).mean()).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return float(((worth * looks[0][1]).sum(-1) / filled).mean())


def solved(model: prism.PrismModel, rows: list[Any], task: Any, num_steps: int, **settings: Any) -> tuple[torch.Tensor, float]:
    """Which puzzles a sampler solves, and the mean of its forwards."""
    sampler = prism.RemaskingSampler.from_preset("confidence", model, num_steps=num_steps, **settings)
    outputs = [(part, sampler.infill(task.canvas(part, model)[0])) for part in batches(rows)]
    right = torch.cat([task.judge(part, output.sequences, model)["success"].total for part, output in outputs]).double()
    return right, sum(int(output.num_forward_passes.sum()) for _, output in outputs) / len(rows)


def batches(rows: list[Any]) -> list[list[Any]]:
    """Rows in batches of 250."""
    return [rows[first : first + 250] for first in range(0, len(rows), 250)]


def main() -> None:
    """Train, and compare with confidence order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--puzzles", type=int, default=4, help="of an update")
    parser.add_argument("--num-steps", type=int, default=4, help="looks at each puzzle")
    parser.add_argument("--test", type=int, default=32, help="test puzzles")
    parser.add_argument("--verifier-free", action="store_true")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--output", type=Path, help="where the policy is written")
    args = parser.parse_args()

    model = prism.PrismModel.from_pretrained(SHIPPED / "weights").eval()
    task = TASKS.get("sudoku")()
    seen, test = task.rows(SHIPPED / "data" / "validation.txt"), task.rows(SHIPPED / "data" / "test.txt", args.test)
    torch.manual_seed(0)
    policy = UnmaskingPolicy(num_positions=81, reads_quality=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.learning_rate)
    with tempfile.TemporaryDirectory() as temporary:
        file = args.output or Path(temporary) / "policy.safetensors"
        for number in range(args.updates):
            rows = [row for row in drawn_puzzles(task, seen, args.puzzles, seed=number) for _ in range(GROUP)]
            drawn = DrawnOrder(policy)
            sampler = prism.RemaskingSampler(model, num_steps=args.num_steps, unmasking=drawn)
            output = sampler.infill(task.canvas(rows, model)[0])
            worth = rewards(task, rows, output, model, args.verifier_free)
            reward = update(policy, drawn.looks, worth, optimizer)
            if number % 10 == 9 or number + 1 == args.updates:
                print(f"update {number + 1} of {args.updates}: mean reward {reward:.3f}", flush=True)
                policy.save(file, model)
        without, looks_without = solved(model, test, task, args.num_steps)
        learned, looks = solved(model, test, task, args.num_steps, policy=file)
    more = learned - without
    print(
        f"of {len(test)} test puzzles solved in {looks:.1f} looks: confidence {without.mean():.1%}, policy {learned.mean():.1%}"
        f", {more.mean():+.1%} ± {more.std() / len(more) ** 0.5:.1%}"
    )
    if looks == looks_without == args.num_steps:
        print("with the policy and without, each puzzle took the same number of looks")


if __name__ == "__main__":
    main()
