"""Keeps secrets out of everything a person or a log can read."""

import json
import logging
import re
import traceback
from base64 import b64encode
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"

# Shorter secrets would blot out ordinary words; the patterns below still catch them where they name themselves.
SHORTEST_SECRET = 4
SHORTEST_IN_BODY = 8  # data must stay as it came: a weak password may well be part of an item's number
DEEPEST_VALUE = 8
ENCODINGS = ("utf-8", "gb18030", "latin-1")
QUERY_SAFE = ("", "/", "/:?@!$'()*,;")  # what different programs leave as it is in a query

_NAMED = re.compile(
    r"""(?ix) \b ( (?: api_?token | access_?token | passwd | password | session (?:_?key)? | sign | app_?secret )
        (?: = | %3D | ["'] \s* [:=,] \s* ["'] ) )
        [^\s"'&<>]+""",
)
_AUTHORIZATION = re.compile(r"""(?i)\b(authorization["']?\s*[:=,]\s*["']?(?:bearer|basic)\s+)[^\s"',]+""")
_WEBHOOK = re.compile(r"whsec_[\w-]+")  # secrets of our own making name themselves
_PERCENT = re.compile("%[0-9A-F]{2}")
_MARKUP = re.compile("[<>&='+]")  # what some JSON encoders escape for the sake of HTML
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|[^A-Za-z0-9]")  # what encodings may change or have made
_USERINFO = re.compile(r"""(://[^\s/:@"']{0,256}:)[^\s/"']{1,1024}@""")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask every given secret in `text`, and whatever names itself as one: apiToken=…, session=…, user:…@host."""
    known = _known(tuple(secrets))
    if known is not None:
        text = known.sub(MASK, text)
    text = _NAMED.sub(rf"\1{MASK}", text)
    text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
    text = _WEBHOOK.sub(MASK, text)
    return _USERINFO.sub(rf"\1{MASK}@", text)


def redact_bytes(body: bytes, secrets: Iterable[str]) -> bytes:
    """Mask every given secret in an answer's bytes, in each of its spellings and those of JSON."""
    hints, spellings = _in_bytes(tuple(secrets))
    if any(hint in body for hint in hints):  # a cheap scan: nearly every body holds none
        for spelling in spellings:
            body = body.replace(spelling, MASK.encode())
    return body


def redact_value(value: Any, secrets: Iterable[str] = (), depth: int = DEEPEST_VALUE) -> Any:
    """Redact the texts inside dicts, lists and tuples too; an exception becomes its redacted text."""
    if isinstance(value, BaseException):
        value = f"{type(value).__name__}: {value}"
    elif isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return redact(value, secrets)
    if not isinstance(value, (dict, list, tuple)):
        return value
    if depth == 0:
        return MASK
    if isinstance(value, dict):
        return {key: _redact_entry(key, part, secrets, depth - 1) for key, part in value.items()}
    cleaned = [redact_value(part, secrets, depth - 1) for part in value]
    return cleaned if isinstance(value, list) else tuple(cleaned)


class RedactSecrets(logging.Filter):
    """Put this on handlers, not loggers: a logger's filter does not see the records of its children."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record in place; it is never dropped."""
        if isinstance(record.msg, dict):  # structlog hands its event over like this
            record.msg = redact_value(record.msg, self._secrets)
        else:
            self._redact_message(record)
        self._redact_traceback(record)
        for name, value in list(vars(record).items()):
            if isinstance(value, (str, dict)) and name != "msg":
                setattr(record, name, redact_value(value, self._secrets))
        return True

    def _redact_message(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # a record that cannot be formatted would be dumped raw, arguments and all
            text = f"{record.msg} {record.args}"
        cleaned = redact(text, self._secrets)
        if cleaned != text or record.args:
            record.msg, record.args = cleaned, ()

    def _redact_traceback(self, record: logging.LogRecord) -> None:
        """Only a traceback with a secret in it is turned into text, so that formatters keep their own layout."""
        if not record.exc_info or isinstance(record.exc_info, bool) or record.exc_info[0] is None:
            return
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        cleaned = redact(text, self._secrets)
        if cleaned == text:
            return
        record.exc_info = record.exc_text = None
        if isinstance(record.msg, dict):
            record.msg = {**record.msg, "exception": cleaned}
            record.msg.pop("exc_info", None)
        else:
            record.msg = f"{record.msg}\n{cleaned}"


def _redact_entry(key: Any, value: Any, secrets: Iterable[str], depth: int) -> Any:
    """A value is masked for its key's sake as well: {"apiToken": …}."""
    if isinstance(value, str) and value and _NAMED.match(f"{key}={MASK}"):
        return MASK
    return redact_value(value, secrets, depth)


@lru_cache(maxsize=64)
def _known(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
    usable = sorted((s for s in spellings if len(s) >= SHORTEST_SECRET), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, usable))) if usable else None


@lru_cache(maxsize=64)
def _in_bytes(secrets: tuple[str, ...]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The spellings to mask in an answer, longest first, and a few parts of them without which none is there."""
    plain = {spelling for secret in secrets for spelling in _spellings(secret)}
    escaped = {json.dumps(spelling, ensure_ascii=narrow)[1:-1] for spelling in plain for narrow in (True, False)}
    escaped |= {spelling.replace("/", "\\/") for spelling in escaped}
    escaped |= {_MARKUP.sub(lambda match: f"\\u{ord(match[0]):04x}", spelling) for spelling in escaped}
    usable = sorted((s for s in plain | escaped if len(s) >= SHORTEST_IN_BODY), key=len, reverse=True)
    hints = {max(_ENCODED.sub(" ", spelling).split(), key=len, default=spelling) for spelling in usable}
    return _encoded(sorted(hints)), _encoded(usable)


def _encoded(texts: Iterable[str]) -> tuple[bytes, ...]:
    """Each text in every encoding that has it: a gateway's error page need not be UTF-8."""
    found: dict[bytes, None] = {}
    for text in texts:
        for encoding in ENCODINGS:
            with suppress(UnicodeEncodeError):
                found[text.encode(encoding)] = None
    return tuple(found)


def _spellings(secret: str) -> set[str]:
    """How a secret may be written. Of a URL only the password is secret: the rest helps whoever reads the log."""
    login = ""
    if "://" in secret:
        userinfo = secret.split("://", 1)[1].rpartition("@")[0]
        secret = userinfo.partition(":")[2]
        login = b64encode(unquote(userinfo).encode()).decode()  # as the basic scheme sends it
    forms = {secret, unquote(secret)}
    forms |= {encode(form, safe=safe) for form in forms for encode in (quote, quote_plus) for safe in QUERY_SAFE}
    forms |= {_PERCENT.sub(lambda match: match[0].lower(), form) for form in forms}
    return {login} | forms | {repr(form)[1:-1] for form in forms}
