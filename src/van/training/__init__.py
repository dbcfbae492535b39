"""The training loop of every task: optimizer, schedule, EMA, checkpoints, resume, distributed training and run log."""
