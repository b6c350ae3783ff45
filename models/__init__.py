"""The memory of shopcrawl: settings, errors, tables, the ledger and everything that is stored or sent."""
