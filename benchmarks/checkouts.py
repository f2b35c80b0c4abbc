"""Is this checkout as fast as another? `python -m benchmarks.checkouts OLD`, where OLD is a folder with a checkout.

Both do the same work in turn, each in a process of its own that stays: one warms up, then pairs are measured, the order within
a pair alternating. A pair's ratio is new over old, by the process's own clock. Printed are the mean ratio and the upper end of
its 95 % interval (Student's t over the logarithms), for sampling and for a training step.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

NEW = Path(__file__).resolve().parents[1]
# One line in, one measurement out: the works that both checkouts have, by names that neither may change.
_WORKER = """
import sys, time
import torch
from benchmarks import sampling, training
from benchmarks.contest import Machine
from benchmarks.shapes import SHAPES

torch.set_num_threads(1)
kind, shape = sys.argv[1:3]
work = {"sampling": sampling, "training": training}[kind].prepare_ours(SHAPES[shape], Machine())
for _ in sys.stdin:
    before = time.process_time()
    work()
    print(time.process_time() - before, flush=True)
"""


class Worker:
    """A process that does one kind of work in one checkout, each time it is asked.

    Args:
        checkout: Folder.
        kind: "sampling" or "training".
        shape: A key of `benchmarks.shapes.SHAPES`.
    """

    def __init__(self, checkout: Path, kind: str, shape: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, kind, shape],
            cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def seconds(self) -> float:
        """Do the work once. Seconds of the process's own clock."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.process.args[3:]} in {self.process.args} ended; run it alone to see why")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def upper_bound(ratios: list[float]) -> tuple[float, float]:
    """The mean of some ratios, and the upper end of its two-sided 95 % interval, by their logarithms."""
    from scipy.stats import t  # only this command needs it

    logs = [math.log(ratio) for ratio in ratios]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean + t.ppf(0.975, len(logs) - 1) * error)


def compare(old: Path, kind: str, shape: str, pairs: int) -> dict[str, float]:
    """Measure one kind of work in both checkouts, in turn."""
    workers = [Worker(checkout, kind, shape) for checkout in (old, NEW)]
    for worker in workers:
        worker.seconds()
    seconds: list[list[float]] = [[], []]
    for pair in range(pairs):
        for number in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[number].append(workers[number].seconds())
    for worker in workers:
        worker.close()
    ratio, bound = upper_bound([new / before for before, new in zip(*seconds, strict=True)])
    return {"old": statistics.median(seconds[0]), "new": statistics.median(seconds[1]), "ratio": ratio, "upper": bound}


def main() -> None:
    """Compare, and print a line for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder of the other checkout")
    parser.add_argument("--pairs", type=int, default=15, help="measured pairs (default: %(default)s)")
    parser.add_argument("--shapes", nargs="+", default=["llada", "sudoku"], help="models and sizes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    args = parser.parse_args()
    found = {
        f"{kind}, {shape}": compare(args.old.resolve(), kind, shape, args.pairs)
        for shape in args.shapes
        for kind in ("sampling", "training")
    }
    if args.json:
        print(json.dumps(found))
        return
    print(f"{'work':<20}{'old, CPU s':>12}{'new, CPU s':>12}{'ratio':>8}{'at most':>9}")
    for name, one in found.items():
        print(f"{name:<20}{one['old']:>12.3f}{one['new']:>12.3f}{one['ratio']:>8.3f}{one['upper']:>9.3f}")


if __name__ == "__main__":
    main()
