"""Adapters, one file for each API, all pure: they build requests and decode answers but never touch the network."""
