"""What a worker process tells Prometheus."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from models.ledger import PageResult, Stored

pages = Counter("shopcrawl_pages", "Pages finished or put back, by the state they went into", ["source", "state"])
items = Counter("shopcrawl_items", "Item rows stored, by what they were to the store", ["source", "kind"])
calls = Counter("shopcrawl_calls", "API calls, by effective outcome", ["source", "outcome"])
call_seconds = Histogram(
    "shopcrawl_call_seconds", "Time of an API call", ["source"], buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 90)
)
permit_wait = Histogram(
    "shopcrawl_permit_wait_seconds",
    "Wait for a permit",
    ["source"],
    buckets=(0.001, 0.01, 0.1, 0.5, 1, 5, 30, 120, 300),
)
in_flight = Gauge("shopcrawl_pages_in_flight", "Pages in this process")
awaiting_store = Gauge("shopcrawl_pages_awaiting_store", "Pages not called for yet, until the store has room for them")
archive_bytes = Counter("shopcrawl_archive_bytes", "Compressed page bodies stored", ["source"])


# The library looks a series up with a lock and a dozen calls, and a page counts in seven of them.
_calls = cache(calls.labels)
_call_seconds = cache(call_seconds.labels)
_permit_wait = cache(permit_wait.labels)
_pages = cache(pages.labels)
_items = cache(items.labels)
_archive_bytes = cache(archive_bytes.labels)


def count_call(source: str, outcome: str, seconds: float) -> None:
    """Count one API call."""
    _calls(source, outcome).inc()
    _call_seconds(source).observe(seconds)


def count_wait(source: str, seconds: float) -> None:
    """Count one wait for a permit."""
    _permit_wait(source).observe(seconds)


def count_page(source: str, result: PageResult, stored: Stored | None) -> None:
    """Count one page's end, with its items and archive bytes if they were stored."""
    _pages(source, stored.state if stored else "outdated").inc()
    if stored is None or stored.state != "done" or result.page is None:
        return
    _items(source, "new").inc(stored.new)
    _items(source, "changed").inc(stored.changed)
    _items(source, "unchanged").inc(len(result.sightings) - stored.new - stored.changed)
    _archive_bytes(source).inc(len(result.body or b""))
