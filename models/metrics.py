"""The Prometheus endpoint that every process of ours can have."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from models.settings import Settings

PORTS = 100

logger = logging.getLogger(__name__)


def start(settings: Settings) -> WSGIServer | None:
    """Serve this process's metrics on METRICS_PORT or, where other processes have taken it, the next free port.

    None if metrics are off, or if there is no port to have: a crawl does not fail for want of metrics.
    """
    first, host = settings.metrics_port, settings.metrics_host
    for port in range(first, min(first + PORTS, 65_536)) if first else ():
        try:
            server, _thread = start_http_server(port, host)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            logger.warning("no metrics: cannot listen on %s port %d: %s", host, port, error.strerror or error)
            return None
        logger.info("metrics on http://%s:%d/metrics", host, port)
        return server
    if first:
        logger.warning("no metrics: every port from %d on is taken", first)
    return None


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """Serve the metrics while the body runs."""
    server = start(settings)
    try:
        yield
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
