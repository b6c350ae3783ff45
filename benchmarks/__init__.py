"""Benchmarks: each prints figures measured in one run against limits that the project promises to keep."""
