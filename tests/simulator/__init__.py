"""A truthful stand-in for the vendors' APIs over real HTTP, with scripted faults and a ledger of truth."""
