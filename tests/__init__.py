"""The test suite and the vendors' simulator."""
