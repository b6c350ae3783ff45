"""What a producer tells Prometheus."""

from prometheus_client import Counter, Gauge

reviewed = Counter("shopcrawl_pages_reviewed", "Finished pages that conclusions were drawn from")
messages = Counter("shopcrawl_messages_sent", "Messages sent to workers")
lost = Counter("shopcrawl_pages_lost", "Pages whose message or worker was lost, sent again")
sent = Gauge("shopcrawl_pages_sent", "Pages out: in a queue or with a worker")
workers = Gauge("shopcrawl_workers", "Worker processes alive")
oldest_due = Gauge("shopcrawl_oldest_due_seconds", "How long the page due longest has waited to be sent")
