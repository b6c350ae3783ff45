"""Keeps secrets out of everything a person or a log can read."""

import logging
import re
import traceback
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"

# Shorter secrets would blot out ordinary words; the patterns below still catch them where they name themselves.
SHORTEST_SECRET = 4
DEEPEST_VALUE = 8
QUERY_SAFE = "/:?@!$'()*,;"  # what HTTP clients leave as it is in a query

_NAMED = re.compile(
    r"""(?ix) \b ( (?: api_?token | access_?token | passwd | password ) (?: = | %3D | ["'] \s* [:=,] \s* ["'] ) )
        [^\s"'&<>]+""",
)
_AUTHORIZATION = re.compile(r"""(?i)\b(authorization["']?\s*[:=,]\s*["']?(?:bearer|basic)\s+)[^\s"',]+""")
_USERINFO = re.compile(r"""(://[^\s/:@"']{0,256}:)[^\s/"']{1,1024}@""")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask every given secret in `text`, and whatever names itself as one: apiToken=…, password=…, user:…@host."""
    known = _known(tuple(secrets))
    if known is not None:
        text = known.sub(MASK, text)
    text = _NAMED.sub(rf"\1{MASK}", text)
    text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
    return _USERINFO.sub(rf"\1{MASK}@", text)


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


def _spellings(secret: str) -> set[str]:
    """How a secret may be written. Of a URL only the password is secret: the rest helps whoever reads the log."""
    if "://" in secret:
        userinfo, separator, _ = secret.split("://", 1)[1].rpartition("@")
        secret = userinfo.partition(":")[2] if separator else ""
    forms = {secret, unquote(secret)}
    forms |= {encode(form, safe=safe) for form in forms for encode in (quote, quote_plus) for safe in ("", QUERY_SAFE)}
    return forms | {repr(form)[1:-1] for form in forms}
