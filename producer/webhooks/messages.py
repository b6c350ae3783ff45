"""What a webhook is made of: address, secret, signature, pauses after failures, and words for answers."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from models.addresses import is_loopback, is_private
from models.errors import UsageError
from models.feed import Entry
from models.redact import redact
from producer.console.text import plain

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 3600.0
LONGEST_REASON = 200
SHORTEST_SECRET, LONGEST_SECRET = 16, 128
LONGEST_URL = 2_000
SIGNATURE = "X-Shopcrawl-Signature"


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The signature header: HMAC-SHA256 over the Unix time, a dot and the body."""
    digest = hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def retry_pause(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row: a random part (`chance`, 0 to 1) of what doubles each time."""
    return chance * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(max(failures - 1, 0), 20))


def new_secret() -> str:
    """A secret to sign with; its beginning lets it be recognised, and masked, wherever it turns up."""
    return f"whsec_{secrets.token_urlsafe(32)}"


def check_secret(text: str) -> str:
    """The secret without the white space around it. Raises UsageError, which never shows it."""
    text = text.strip()
    if not (text.isascii() and text.isprintable() and SHORTEST_SECRET <= len(text) <= LONGEST_SECRET):
        raise UsageError(f"the secret must have {SHORTEST_SECRET} to {LONGEST_SECRET} printable ASCII characters")
    return text


def check_url(url: str, *, allow_http: bool) -> str:
    """An address that changes may be sent to. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, usable = parts.hostname or "", parts.port != 0
    except ValueError:
        raise UsageError("the address is not a URL") from None
    if not host or not usable or not url.isprintable() or " " in url or len(url) > LONGEST_URL:
        raise UsageError("the address is not a URL such as https://example.com/changes")
    if "@" in parts.netloc or parts.fragment:
        raise UsageError("the address must have neither a login nor a fragment")
    if parts.scheme == "https":
        return url
    near = is_loopback(host) or is_private(host)
    if parts.scheme != "http" or not near:
        raise UsageError("the address must start with https://; http:// is for loopback and private addresses only")
    if not allow_http:
        raise UsageError("http:// sends the changes unencrypted: --allow-http permits it for this address")
    return url


class Message(msgspec.Struct, frozen=True):
    """The body of a request, as docs/webhooks.md describes it."""

    subscription: int
    deliveries: Sequence[Entry]


class Answer(msgspec.Struct, frozen=True):
    """What a subscriber answered: the HTTP status and the beginning of the body, or None and why there was no answer.

    `cut` tells that the body is longer.
    """

    status: int | None
    text: str
    cut: bool = False


def is_success(answer: Answer) -> bool:
    """Whether the receiver has taken the message."""
    return answer.status is not None and 200 <= answer.status < 300


def why(answer: Answer) -> str:
    """Why a message was not taken, on one line."""
    if answer.status is None:
        return answer.text
    redirected = "redirects are not followed" if 300 <= answer.status < 400 else ""
    return f"HTTP {answer.status}: {redirected or answer.text}".rstrip(": ")


def shown(answer: Answer, known: Sequence[str]) -> str:
    """The text of an answer without secrets, on one short line."""
    text = redact(answer.text, known)
    if answer.cut:  # perhaps in the middle of a secret, each of whose characters may be written as three
        text = text[: -3 * max(map(len, known))]
    return plain(text, LONGEST_REASON)
