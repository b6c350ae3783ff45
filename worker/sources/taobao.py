"""Taobao Open Platform's "get a seller's warehouse": one signed call returns one page of a window of time."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from models.billing import Prices, parse_prices
from models.errors import EarlyWindowError, TransientError
from models.messages import PageTask
from models.settings import Settings
from models.source import Credential, FetchedPage, HttpRequest, HttpResponse, Limits, Source, WindowRules
from models.windows import LAST
from worker.sources import base, top_answer, top_errors, top_items, top_options
from worker.sources.top_sign import sign

METHOD = "alibaba.tjb.items.inventory.get"
MAX_ANOMALIES = 20
HEADERS = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded;charset=utf-8"}


class TaobaoSource(Source):
    """The adapter registered as `top`."""

    name = "top"
    option_names = top_options.OPTIONS
    filter_names = ("q", "cid", "since")
    needs_session = True

    def windows(self, settings: Settings) -> WindowRules:
        """Listings are read by windows of the time of modification."""
        return WindowRules(
            reach=settings.top_window_rows,
            margin=timedelta(seconds=settings.top_window_margin),
            overlap=timedelta(seconds=settings.top_overlap),
        )

    def credentials(self, settings: Settings) -> tuple[Credential, ...]:
        """The one app, named by the start of its key's SHA-256, if both its key and its secret are set."""
        key, secret = settings.top_app_key, settings.top_app_secret
        if not key or secret is None or not secret.get_secret_value():
            return ()
        return (Credential(hashlib.sha256(key.encode()).hexdigest()[:8], secret.get_secret_value()),)

    def credential_help(self) -> str:
        """One line that tells a user how to configure a credential."""
        return "set SHOPCRAWL_TOP_APP_KEY and SHOPCRAWL_TOP_APP_SECRET to your app's (https://open.taobao.com, console)"

    def base_url(self, settings: Settings) -> str:
        """The gateway that calls go to. Raises UsageError if it is no http(s) address."""
        return base.checked_url(
            settings.top_gateway_url, "SHOPCRAWL_TOP_GATEWAY_URL", "https://eco.taobao.com/router/rest"
        )

    def limits(self, settings: Settings) -> Limits:
        """The limiter's bounds for the app."""
        return Limits.of(
            concurrency=(
                settings.top_concurrency_start,
                settings.top_concurrency_min,
                settings.top_concurrency_max,
                settings.top_concurrency_fixed,
            ),
            rate=settings.top_rate,
            per_minute=settings.top_rate_per_minute,
            per_day=settings.top_calls_per_day,
            day_shift=8 * 3600,
        )

    def prices(self, settings: Settings) -> Prices:
        """As set: the vendor publishes none."""
        return parse_prices(settings.top_prices)

    def daily_caps(self, settings: Settings) -> tuple[int | None, Decimal | None]:
        """As set."""
        return settings.top_daily_calls, settings.top_daily_spend

    def check_shop(self, shop: str) -> None:
        """Accept a seller's nick: 1 to 128 letters, digits, Chinese characters and `_ . : @ · -`. Raises UsageError."""
        top_options.check_nick(shop)

    def options(self, given: Mapping[str, str], settings: Settings) -> dict[str, Any]:
        """Validate options and fill in defaults; an empty text counts as not given. Raises UsageError."""
        return top_options.checked(given, settings)

    def whole(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Without `since`."""
        return {name: value for name, value in options.items() if name != "since"}

    def newest(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What was modified since the last whole crawl."""
        return {**options, "since": LAST}

    def narrowed(self, options: Mapping[str, Any]) -> dict[str, Any] | None:
        """The same options with only the fields that the vendor's page allows by name; None if they are so already."""
        return top_options.narrowed(options)

    def request(
        self, task: PageTask, credential: Credential, settings: Settings, now: datetime, session: str | None = None
    ) -> HttpRequest:
        """Build the call for one page, signed for this moment; everything is in the body, for addresses get logged."""
        params = _params(task, settings, now)
        params["session"] = session or ""
        params = {name: value for name, value in params.items() if value}
        params["sign"] = sign(params, credential.secret, settings.top_sign_method)
        return HttpRequest("POST", self.base_url(settings), {}, HEADERS, urlencode(params).encode())

    def decode(self, response: HttpResponse, task: PageTask, now: datetime) -> FetchedPage:
        """Read an answer: an error in the body counts, whatever the HTTP status, and then the status.

        Raises a FetchError whose class names the reaction; never any other error.
        """
        try:
            answer = top_answer.parse(response.body)
        except TransientError:
            if response.status == 200:
                raise
            answer = None
        said = top_answer.refusal(answer)
        if said is not None:
            raise top_errors.failure(said, response, now, wide=top_options.is_wide(task.options))
        if response.status != 200:
            raise base.status_error(response.status, "", response)
        _require_past(task, response)
        total, rows = top_answer.listing(answer)
        anomalies: list[str] = []
        items = top_items.read_items(rows, str(task.options.get("nick") or task.shop), anomalies)
        return FetchedPage(items, total, None, tuple(dict.fromkeys(anomalies))[:MAX_ANOMALIES])


def _require_past(task: PageTask, response: HttpResponse) -> None:
    """Raise EarlyWindowError unless the window is over by the platform's own clock.

    Until then rows may still be edited inside it, and reading it would miss some of them without a sign.
    """
    end, now = task.options.get("end_modified"), base.answered_at(response)
    if end and now is not None and (ahead := (datetime.fromisoformat(end) - now).total_seconds()) > 0:
        message = f"the window ends {ahead:.0f} s ahead of the platform's clock: this machine's clock is wrong (NTP)"
        raise EarlyWindowError("early", message, now=now)


def _params(task: PageTask, settings: Settings, now: datetime) -> dict[str, str]:
    """All parameters but the session and the signature; those that are not set are empty."""
    options = task.options
    return {
        "method": METHOD,
        "app_key": settings.top_app_key or "",
        "timestamp": top_options.china_text(now),
        "v": "2.0",
        "format": "json",
        "sign_method": settings.top_sign_method,
        "simplify": "true" if settings.top_simplify else "",
        "fields": str(options.get("fields") or top_options.DEFAULT_FIELDS),
        "order_by": str(options.get("order_by") or top_options.DEFAULT_ORDER),
        "page_no": str(task.page),
        "page_size": str(options.get("page_size") or settings.top_page_size),
        "q": str(options.get("q") or ""),
        "cid": str(options.get("cid") or ""),
        "start_modified": _edge(options.get("start_modified")),
        "end_modified": _edge(options.get("end_modified")),
    }


def _edge(text: str | None) -> str:
    """A window's edge as the platform writes it; the task has it as ISO 8601 text in UTC."""
    if not text:
        return ""
    moment = datetime.fromisoformat(text)
    return top_options.china_text(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)
