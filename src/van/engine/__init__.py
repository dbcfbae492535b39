"""One training loop for every task: optimiser, schedule, EMA, resume, distributed, run log."""
