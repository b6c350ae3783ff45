"""Stored rows as files."""
