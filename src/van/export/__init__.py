"""Export of checkpoints to other runtimes; each format module has the writer and the session that reads its files."""
