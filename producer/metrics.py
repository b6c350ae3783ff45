"""What a producer tells Prometheus."""

from collections.abc import Sequence

from prometheus_client import Counter, Gauge

from models.circuits import OpenCircuit
from models.costs import Reserved
from models.fleet import LimitState

reviewed = Counter("shopcrawl_pages_reviewed", "Finished pages that conclusions were drawn from")
messages = Counter("shopcrawl_messages_sent", "Messages sent to workers")
lost = Counter("shopcrawl_pages_lost", "Pages whose message or worker was lost, sent again")
sent = Gauge("shopcrawl_pages_sent", "Pages out: in a queue or with a worker")
workers = Gauge("shopcrawl_workers", "Worker processes alive")
webhook_waiting = Gauge("shopcrawl_webhook_waiting", "Changes that wait for a subscriber, counted for each")
webhook_changes = Counter("shopcrawl_webhook_changes", "Changes that subscribers have taken")
webhook_failures = Counter("shopcrawl_webhook_failures", "Deliveries of changes that failed")
oldest_due = Gauge("shopcrawl_oldest_due_seconds", "How long the page due longest has waited to be sent")
queue_depth = Gauge("shopcrawl_queue_depth", "Messages waiting in a queue", ["queue"])
limit = Gauge("shopcrawl_limit", "Calls in flight the fleet allows now", ["source", "credential"])
permits = Gauge("shopcrawl_permits_in_use", "Calls in flight in the whole fleet", ["source", "credential"])
waiting = Gauge("shopcrawl_permits_waited_for", "Pages that wait for a permit now", ["source", "credential"])
parked = Gauge("shopcrawl_parked", "1 while a credential is parked", ["source", "credential"])
ban_seconds = Gauge("shopcrawl_ban_seconds", "How long a credential is still banned", ["source", "credential"])

circuits = Gauge("shopcrawl_circuits_open", "Shops and sources that rest", ["source", "scope"])


def show_circuits(source: str, found: Sequence[OpenCircuit]) -> None:
    """Set the gauges of one source."""
    scopes = ["shop" if circuit.shop else "source" for circuit in found if circuit.state != "given up"]
    for scope in ("shop", "source"):
        circuits.labels(source, scope).set(scopes.count(scope))


calls_reserved = Gauge("shopcrawl_calls_reserved", "Calls reserved so far, before they are made", ["source"])
calls_settled = Gauge("shopcrawl_calls_settled", "Calls so far whose answer or end was stored", ["source"])
calls_unknown = Gauge("shopcrawl_calls_unknown", "Calls so far that were reserved and never heard of again", ["source"])
spend = Gauge("shopcrawl_spend", "Money spent or set aside so far", ["source"])


def show_calls(source: str, reserved: Reserved, settled: int, unknown: int) -> None:
    """Set the gauges of one source's calls and money."""
    calls_reserved.labels(source).set(reserved.calls)
    calls_settled.labels(source).set(settled)
    calls_unknown.labels(source).set(unknown)
    spend.labels(source).set(float(reserved.spend))  # Prometheus knows nothing but floats; the ledger stays exact


def show_limit(state: LimitState) -> None:
    """Set the gauges of one credential."""
    labels = (state.source, state.credential)
    limit.labels(*labels).set(state.limit)
    permits.labels(*labels).set(state.in_flight)
    waiting.labels(*labels).set(state.waiting)
    parked.labels(*labels).set(state.parked is not None)
    ban_seconds.labels(*labels).set(state.ban.seconds if state.ban else 0)
