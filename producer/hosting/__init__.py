"""Processes that live no longer than whoever started them."""
