"""Measuring: operators and whole networks side by side in one run, each checked before its speed is told."""
