"""Script that kills training at random moments and resumes it until it finishes, each run in a forked child.

torch is imported once and used only in the children, so forking is safe and no run imports it again.
Usage: killed_runs.py OUT SEED; prints the number of killed runs.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.tiny import tiny_run
from van.training.trainer import fit

MAX_RUNS = 60


def train_and_exit(out: Path) -> None:
    """Train or resume, then exit the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    fit(tiny_run(epochs=3), out, resume=out.exists())
    os._exit(0)


def main(out: Path, seed: int) -> None:
    """Start, kill and resume until one run finishes."""
    generator = random.Random(seed)
    killed = 0
    for _ in range(MAX_RUNS):
        child = os.fork()
        if child == 0:
            train_and_exit(out)
        if killed < 8:
            time.sleep(generator.uniform(0.05, 1.2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status) == 0:
            print(killed)
            return
        else:
            sys.exit(f"a run failed with status {os.WEXITSTATUS(status)}")
    sys.exit(f"not finished after {MAX_RUNS} runs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
