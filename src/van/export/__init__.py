"""Checkpoints as files that other runtimes answer from; each format is a writer beside the session that reads it."""
