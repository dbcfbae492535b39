"""Benchmarks of operators, networks and runtime sessions. Outputs are verified before throughput is reported."""
