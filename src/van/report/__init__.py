"""One page about a run: what was trained, how good it is, where it fails, how fast it is, with everything inside."""
