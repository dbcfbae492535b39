"""Run as a script: kills training at random moments until it ends, each run in a forked child.

torch is imported once and used only in the children, so forking is safe and a kill costs no import.
Usage: killed_runs.py OUT SEED; prints how many runs were killed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from engine.tiny import tiny_job
from van.engine.fit import fit

MOST_RUNS = 60


def one_run(out: Path) -> None:
    """Train, or go on training; never returns."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    fit(tiny_job(epochs=3), out, resume=out.exists())
    os._exit(0)


def main(out: Path, seed: int) -> None:
    """Start, kill, resume, until one run gets through."""
    chance = random.Random(seed)
    killed = 0
    for _ in range(MOST_RUNS):
        child = os.fork()
        if child == 0:
            one_run(out)
        if killed < 8:
            time.sleep(chance.uniform(0.05, 1.2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status) == 0:
            print(killed)
            return
        else:
            sys.exit(f"a run failed with status {os.WEXITSTATUS(status)}")
    sys.exit(f"not through after {MOST_RUNS} runs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
