"""What the Taobao Open Platform's errors mean: one table, read from the top, that leads to the reaction."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from models.errors import (
    BannedError,
    CredentialParkedError,
    FetchError,
    FieldsRefusedError,
    PageRefusedError,
    ShopRefusedError,
    ShopUnauthorisedError,
    TransientError,
    WindowTooLargeError,
)
from models.source import HttpResponse
from worker.sources import base

DEFAULT_BAN = 60.0
LONGEST_BAN = 24 * 3600.0  # a day's quota is the longest there is; whatever lasts longer is learned again
MAX_CODE = 60

_MORE_SECONDS = re.compile(r"([0-9]{1,12})\s*more\s+second", re.IGNORECASE)
_UNSAFE = re.compile(r"[^0-9A-Za-z._:/\-]+")

# Sessions and signatures are long runs of letters and digits, and the platform may repeat what it was sent.
_KEY = re.compile(r"(?=[A-Za-z]*[0-9])[0-9A-Za-z]{20,}")
_NAMED_KEY = re.compile(r"(?i)\b((?:session|session_?key|sign|app_?secret)\s*[=:]\s*)[0-9A-Za-z]{8,}")

_PARAMETERS = frozenset(
    {"cid", "order_by", "page_no", "page_size", "start_modified", "end_modified", "session", "method", "timestamp"}
)
_WORD = re.compile(r"[a-z_]+")


@dataclass(frozen=True)
class Refusal:
    """An error in safe words; `wide`: fields were asked for that the platform may refuse.

    `ban` is the seconds it names, if any, `skew` how far our clock is ahead of the platform's.
    """

    code: int | None
    sub_code: str
    msg: str
    sub_msg: str
    now: datetime
    wide: bool
    ban: float | None
    skew: timedelta | None

    @property
    def outcome(self) -> str:
        """The code for the ledger: `27` or `15/isp.remote-service-error`."""
        text = "error" if self.code is None else str(self.code)
        return _UNSAFE.sub("", f"{text}/{self.sub_code}" if self.sub_code else text)[:MAX_CODE]

    def message(self, meaning: str) -> str:
        """The platform's words on one line, or `meaning` if it says nothing."""
        said = ": ".join(dict.fromkeys(part for part in (self.msg, self.sub_msg) if part))
        return base.one_line(said or meaning)


def failure(said: Mapping[str, Any], response: HttpResponse, now: datetime, *, wide: bool) -> FetchError:
    """The reaction to the members of an `error_response`; `now` is our clock, `wide` as in Refusal."""
    sub_code, msg, sub_msg = (_text(said.get(name)) for name in ("sub_code", "msg", "sub_msg"))
    refusal = Refusal(
        _number(said.get("code")), sub_code, msg, sub_msg, now, wide, _ban_seconds(said), _skew(response, now)
    )
    for pattern, codes, react in _TABLE:
        if refusal.code in codes or (pattern and re.match(pattern, sub_code.lower())):
            return react(refusal)
    return TransientError(refusal.outcome, refusal.message("unknown error at the platform"))


def _text(value: Any) -> str:
    """A text of the error without what looks like a session or a signature; whatever is no text counts as empty."""
    text = value[: 4 * base.MAX_MESSAGE] if isinstance(value, str) else ""
    return base.one_line(_KEY.sub("***", _NAMED_KEY.sub(r"\1***", text)))


def _ban_seconds(said: Mapping[str, Any]) -> float | None:
    """They stand in free text only; one second more, because they are rounded."""
    texts = (said.get(name) for name in ("sub_msg", "msg"))
    found = (_MORE_SECONDS.search(text[: base.MAX_TEXT]) for text in texts if isinstance(text, str))
    return next((float(each[1]) + 1 for each in found if each), None)


def _number(value: Any) -> int | None:
    try:
        return base.read_integer(value)
    except base.UNREADABLE:
        return None


def _skew(response: HttpResponse, now: datetime) -> timedelta | None:
    """How far our clock is ahead of the one that wrote the answer's Date header."""
    theirs = base.answered_at(response)
    return None if theirs is None else now - theirs


Reaction = Callable[[Refusal], FetchError]


def _as(kind: type[FetchError], meaning: str) -> Reaction:
    return lambda refusal: kind(refusal.outcome, refusal.message(meaning))


def _ban(refusal: Refusal, default: float = DEFAULT_BAN, *, whole_source: bool = False) -> FetchError:
    seconds = min(default if refusal.ban is None else refusal.ban, LONGEST_BAN)
    message = refusal.message("the platform allows no calls for now")
    return BannedError(refusal.outcome, message, seconds=seconds, whole_source=whole_source)


def _api_ban(refusal: Refusal) -> FetchError:
    """The method is closed to every app."""
    return _ban(refusal, whole_source=True)


def _daily_ban(refusal: Refusal) -> FetchError:
    """The app's calls for today are used up: they count anew from 24:00 in China."""
    today = refusal.now.astimezone(base.CHINA)
    midnight = today.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return _ban(refusal, (midnight - today).total_seconds() + 1)


def _clock(refusal: Refusal) -> FetchError:
    """The time stamp is refused when this machine's clock is more than ten minutes off."""
    minutes = round(abs(refusal.skew).total_seconds() / 60) if refusal.skew is not None else 0
    if refusal.skew is None or not minutes:
        advice = "check this machine's clock: it must agree with the platform's within 10 minutes (NTP)"
        return CredentialParkedError(refusal.outcome, base.one_line(f"{refusal.message('time refused')}; {advice}"))
    side = "ahead of" if refusal.skew > timedelta() else "behind"
    unit = "minute" if minutes == 1 else "minutes"
    advice = f"this machine's clock is {minutes} {unit} {side} the platform's: set it (NTP)"
    return CredentialParkedError(refusal.outcome, advice)


def _parameter(refusal: Refusal) -> FetchError:
    """The platform does not say what it thinks of fields it documents in answers only: they are the first suspects."""
    _, named, suffix = refusal.sub_code.lower().partition(":")
    words = {suffix.strip()} if named else set(_WORD.findall(f"{refusal.msg} {refusal.sub_msg}".lower()))
    others = words - {"fields"} if named else words & _PARAMETERS
    kind = FieldsRefusedError if refusal.wide and ("fields" in words or not others) else PageRefusedError
    return kind(refusal.outcome, refusal.message("the platform refuses a parameter"))


_NONE: frozenset[int] = frozenset()
_SESSION = r"(isv\.)?(session-expired|invalid-session|session-not-exist|sessionkey-not-generated-by-server)"
_SHOP = r"isv\.(shop|seller|user)-(not-exist|closed|frozen|deleted)"

# (sub_code from its beginning, codes, reaction); the first row that fits either counts.
_TABLE: tuple[tuple[str, frozenset[int] | range, Reaction], ...] = (
    (r"accesscontrol\.limited-by-api-access-count", _NONE, _api_ban),
    (r"accesscontrol\.limited-by-app-access-count", _NONE, _daily_ban),
    (r"accesscontrol\.|isp\.call-limited|isv\.access-limited-by-", range(4, 9), _ban),
    (r"isp\.invalid-parameter", _NONE, _as(PageRefusedError, "the platform refuses a parameter")),
    (r"isp\.", _NONE, _as(TransientError, "the platform's own service failed")),
    (_SESSION, frozenset({26, 27}), _as(ShopUnauthorisedError, "the shop's session is missing or refused")),
    (r"isv\.permission-", range(11, 14), _as(CredentialParkedError, "the app lacks a permission")),
    (r"isv\.timestamp-limit", frozenset({31}), _clock),
    (r"isv\.request-replay", _NONE, _as(TransientError, "the platform takes the call for a repeated one")),
    ("", frozenset({*range(21, 26), *range(28, 35)}), _as(CredentialParkedError, "the call's form is refused")),
    (r"isv\.invalid-parameter\S*gain-number-too-large", _NONE, _as(WindowTooLargeError, "too many rows")),
    (_SHOP, _NONE, _as(ShopRefusedError, "the platform does not know the shop")),
    (r"isv\.[a-z\-]*(parameter|param|argument)s?\b", frozenset({40, 41, 43}), _parameter),
    (r"isv\.", _NONE, _as(PageRefusedError, "the platform refuses the call")),
)  # fmt: skip
