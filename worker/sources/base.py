"""What adapters share: the reaction to an HTTP status, a JSON parser that repairs, and lenient readers of values."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec

from models.errors import (
    CredentialParkedError,
    FetchError,
    SourceStoppedError,
    ThrottledError,
    TransientError,
    UsageError,
)
from models.redact import redact
from models.source import HttpResponse

MAX_MESSAGE = 200
MAX_RETRY_AFTER = 24 * 3600.0
MAX_TEXT = 10_000
MAX_LIST = 500
MAX_DEPTH = 20
MAX_CALLS = 100_000_000
MAX_INTEGER = 2**63 - 1

# What NUMERIC(20, 6) holds exactly.
DECIMAL_LIMIT = Decimal(10) ** 14
DECIMAL_SCALE = 6

# Both vendors are in China, which has had one offset and no summer time since 1991.
CHINA = timezone(timedelta(hours=8))

UNREADABLE = (ValueError, TypeError, ArithmeticError)
"""What a reader may raise for a value it cannot take."""

Reader = Callable[[Any], Any]

_NUMERAL = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?|[+-]?\.[0-9]{1,30}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_PARSER = msgspec.json.Decoder()


def shown(text: str) -> str:
    """A user's text as it is safe to print: quoted, escaped and short."""
    return ascii(text[:40]) + ("…" if len(text) > 40 else "") if not text.isprintable() else repr(text[:40])


def checked_url(url: str, setting: str, example: str) -> str:
    """An http(s) address without a slash at its end. Raises UsageError that does not show it: it may hold a login."""
    trimmed = url.strip().rstrip("/")
    try:
        parts = urlsplit(trimmed)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "?" in trimmed or "#" in trimmed or "@" in trimmed:
        raise UsageError(f"{setting} must look like {example}: no login, no query")
    return trimmed


def whole_number(name: str, value: str | int, most: int) -> int:
    """An option's value from 1 to `most`. Raises UsageError."""
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise UsageError(f"{name} must be a whole number from 1 to {most}, not {shown(text)}")
    return int(text)


def header(response: HttpResponse, name: str) -> str | None:
    """A header's value whatever its capitals; `name` in lower case."""
    return next((value for key, value in response.headers.items() if key.lower() == name), None)


def retry_after(response: HttpResponse) -> float | None:
    """The pause in seconds that the answer asks for, at most a day.

    A date is measured from the answer's own Date header, because our clock may differ from the server's.
    """
    text = (header(response, "retry-after") or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), MAX_RETRY_AFTER)
    try:
        pause = parsedate_to_datetime(text) - parsedate_to_datetime(header(response, "date") or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(pause.total_seconds(), 0.0), MAX_RETRY_AFTER)


def answered_at(response: HttpResponse) -> datetime | None:
    """The server's time when it answered, by its Date header."""
    try:
        moment = parsedate_to_datetime(header(response, "date") or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def one_line(text: object) -> str:
    """A server's message made safe to show: one line, bounded, printable, secrets masked."""
    words = " ".join(redact(str(text)[: 4 * MAX_MESSAGE]).split())
    return "".join(c if c.isprintable() else "?" for c in words)[:MAX_MESSAGE]


def status_error(status: int, message: str, response: HttpResponse) -> FetchError:
    """The reaction to a status that HTTP or a gateway gave, for sources whose own table does not know it.

    A status that nobody documented is tried again a bounded number of times: giving up could lose a page.
    """
    pause = retry_after(response)
    code = str(status)
    if 300 <= status < 400:
        target = one_line((header(response, "location") or "nowhere").partition("?")[0])
        return TransientError("redirect", f"HTTP {status} to {target}; redirects are not followed", retry_after=pause)
    if status in {401, 402, 403}:
        return CredentialParkedError(code, message or "the credential was refused")
    if status == 404:
        return SourceStoppedError(code, f"wrong address, check the base URL: {message or 'not found'}")
    if status == 407:
        return SourceStoppedError(code, "the proxy asks for a login, check SHOPCRAWL_PROXY")
    if status in {429, 503}:
        return ThrottledError(code, message or "too many calls", retry_after=pause)
    return TransientError(code, message or "the server failed", retry_after=pause)


def parse_json(body: bytes) -> Any:
    """Parse a body, repairing what databases reject: NUL is dropped and half a surrogate pair becomes U+FFFD.

    Raises TransientError with a code word: empty, html, truncated, malformed or nested. All of them are known to pass.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        tree = _PARSER.decode(body)
        return repaired(tree) if b"\\u0000" in body else tree
    except RecursionError:
        reason = ("nested", "the answer is nested too deeply")
    except UnicodeDecodeError:
        reason = ("malformed", "the answer is not UTF-8")
    except msgspec.DecodeError as error:
        return _parse_leniently(body, str(error))
    raise TransientError(*reason)


def _parse_leniently(body: bytes, complaint: str) -> Any:
    """The second try, for raw control characters and cut emoji inside texts, which msgspec refuses."""
    start = body[:200].lstrip()
    if not start and not body.strip():
        raise TransientError("empty", "the answer is empty")
    if start.startswith(b"<"):
        raise TransientError("html", "the answer is a web page instead of JSON")
    try:
        return repaired(json.loads(body.decode(), strict=False, parse_constant=_refuse))
    except RecursionError:
        reason = ("nested", "the answer is nested too deeply")
    except ValueError:
        word = "truncated" if "truncated" in complaint else "malformed"
        reason = (word, f"the answer is {word} JSON")
    raise TransientError(*reason)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def repaired(value: Any) -> Any:
    """Text without NUL and lone surrogates, in nested values too. Raises RecursionError for absurd nesting."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value.replace("\0", ""))
    if isinstance(value, dict):
        return {repaired(key): repaired(part) for key, part in value.items()}
    return [repaired(part) for part in value] if isinstance(value, list) else value


def storable(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A parsed value as any JSON column takes it: huge numbers become text. Raises ValueError for an absurd one."""
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, int):
        return value if -MAX_INTEGER <= value <= MAX_INTEGER else str(value)
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {key: storable(part, depth - 1) for key, part in value.items()}
    return [storable(part, depth - 1) for part in value]


def read_text(value: Any) -> str:
    """Text, or a whole number as text (vendors send ids both ways)."""
    if type(value) is not str:
        if type(value) is not int:
            raise TypeError
        return str(read_integer(value))
    if len(value) > MAX_TEXT:
        raise ValueError
    return value


# An item repeats its price four times and neighbours cost the same; `typed` keeps 1, 1.0 and true apart.
@lru_cache(maxsize=8192, typed=True)
def read_decimal(value: Any) -> Decimal:
    """An exact number out of text or a JSON number; refused if NUMERIC(20, 6) could not hold it exactly."""
    if type(value) is str and len(value) <= 14 and not value.strip("0123456789."):
        point = value.find(".")
        if point < 0 or len(value) - point <= DECIMAL_SCALE:
            return Decimal(value)
    if type(value) is float:
        value = f"{Decimal(repr(value)):f}"
    elif type(value) is int:
        value = str(read_integer(value))
    elif type(value) is not str:
        raise TypeError
    text = value.strip().replace(",", "")
    if not _NUMERAL.fullmatch(text):
        raise ValueError
    number = Decimal(text)
    if abs(number) >= DECIMAL_LIMIT or number != round(number, DECIMAL_SCALE):
        raise ValueError
    return number


def read_integer(value: Any) -> int:
    """A whole number of at most 64 bits out of text or a JSON number."""
    if type(value) is str and len(value) <= 18 and value.isascii() and value.isdigit():
        return int(value)
    if type(value) is not int:
        number = read_decimal(value)
        value = int(number)
        if value != number:
            raise ValueError
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError
    return int(value)


_BOOLEANS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


def read_boolean(value: Any) -> bool:
    """true and false, also as text or as 1 and 0."""
    try:
        return _BOOLEANS[value.strip().lower() if type(value) is str else value]
    except KeyError:
        raise ValueError from None


def read_time(value: Any) -> datetime:
    """An aware UTC time out of ISO text; a time without an offset is China's."""
    if type(value) is not str:
        raise TypeError
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=CHINA)
    return moment.astimezone(UTC)


def read_texts(value: Any) -> list[str]:
    """A list of texts, nulls left out; a single text counts as a list of one."""
    if type(value) is str:
        return [read_text(value)]
    if type(value) is not list or len(value) > MAX_LIST:
        raise ValueError
    try:
        if len("".join(value)) <= MAX_TEXT:  # one call in C tells that all of them are texts
            return value
    except TypeError:
        pass
    return [read_text(part) for part in value if part is not None]


def read_fields(
    raw: Mapping[str, Any],
    table: Mapping[str, tuple[str, Reader]],
    fields: dict[str, Any],
    anomalies: list[str],
) -> dict[str, Any]:
    """Read `raw` by `table` (vendor's key -> our field and its reader) into `fields`; return what was left over.

    A known field that cannot be read stays raw among the left-over ones and is reported in `anomalies`.
    """
    extra: dict[str, Any] = {}
    for key, value in raw.items():
        known = table.get(key)
        if known is None:
            keep(extra, key, value, anomalies)
        elif value is not None and value != "":
            try:
                fields[known[0]] = known[1](value)
            except UNREADABLE:
                keep(extra, key, value, anomalies)
                anomalies.append(f"bad-{key}")
    return extra


def keep(extra: dict[str, Any], key: str, value: Any, anomalies: list[str]) -> None:
    """Keep a value as it came, unless it is so deep or huge that a database would choke on it."""
    try:
        extra[key] = storable(value)
    except ValueError:
        anomalies.append("dropped-field")
