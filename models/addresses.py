"""What an address tells before anything is sent to it."""

import ipaddress
import logging
from functools import cache
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_private(host: str) -> bool:
    """Whether a host is an address that no packet from beyond its own network reaches."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def warn_if_plain_http(url: str) -> None:
    """Log a warning, once for each address, if calls would carry a token unencrypted off this machine."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        _warn_once(parts.hostname or "")


@cache
def _warn_once(host: str) -> None:
    logger.warning("plain http to %s: the token travels unencrypted; use https if the server offers it", host)
