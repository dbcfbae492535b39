"""Measuring: operators side by side in one run, each checked before its speed is told."""
