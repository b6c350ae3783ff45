"""TMAPI's 1688 "get shop items": one call returns one page of a shop's items."""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from models.billing import Prices, parse_prices
from models.errors import (
    CredentialParkedError,
    FetchError,
    ShopRefusedError,
    ThrottledError,
    TransientError,
    UsageError,
)
from models.messages import PageTask
from models.settings import Settings
from models.source import Credential, FetchedPage, HttpRequest, HttpResponse, Item, Limits, Source
from worker.sources import base
from worker.sources.tmapi_usual import usual_answer

PATH = "/1688/shop/items"
SORTS = ("default", "sales", "price_up", "price_down", "time_up", "time_down")

# New items are appended under this order, so pages already read do not shift.
DEFAULT_SORT = "time_up"
NEWEST_FIRST = "time_down"
MAX_PAGE_SIZE = 200

# Far above any page size asked for; more than this is not a page, and must not fill the memory.
MAX_ITEMS = 1_000
MAX_TOTAL = 10**9
MAX_ANOMALIES = 20

OK = 200

# Opaque and case-sensitive. Known forms are `jane727` and `b2b-22088…`; Chinese login names are let through as well.
# Whatever could end a log line, a query, a CSV cell or a shell word is not.
_SHOP = re.compile(r"[0-9A-Za-z_.@\-\u3400-\u4dbf\u4e00-\u9fff]{1,128}")
_CATEGORY = re.compile(r"[0-9A-Za-z_\-]{1,64}")
_PRICE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,2})?")
_ITEM_ID = re.compile(r"[0-9A-Za-z_.\-]{1,64}")
_ROUNDED_TOTAL = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,4})?)(万|亿)?\+?")
_UNITS = {None: 1, "万": 10**4, "亿": 10**8}

_OPTIONS = ("sort", "page_size", "max_pages", "max_calls", "shop_cat_id", "price_start", "price_end")

_ITEM_FIELDS: dict[str, tuple[str, base.Reader]] = {
    "title": ("title", base.read_text),
    "img": ("image", base.read_text),
    "main_imgs": ("images", base.read_texts),
    "video_id": ("video_id", base.read_text),
    "category_path": ("category_path", base.read_texts),
    "category_name": ("category_name", base.read_text),
    "price": ("price", base.read_decimal),
    "quantity_begin": ("quantity_begin", base.read_integer),
    "new_product": ("new_product", base.read_boolean),
    "primary_rank_score": ("rank_score", base.read_decimal),
    "type": ("type", base.read_text),
    "unit": ("unit", base.read_text),
    "created_time": ("created_time", base.read_time),
    "status": ("status", base.read_text),
}
_GROUPS: dict[str, dict[str, tuple[str, base.Reader]]] = {
    "price_info": {
        "drop_ship_price": ("drop_ship_price", base.read_decimal),
        "wholesale_price": ("wholesale_price", base.read_decimal),
        "origin_price": ("origin_price", base.read_decimal),
        "agent_price": ("agent_price", base.read_decimal),
    },
    "sale_info": {
        "gmv_30days": ("gmv_30d", base.read_decimal),
        "gmv_90days": ("gmv_90d", base.read_decimal),
        "sale_quantity_30days": ("sold_30d", base.read_integer),
        "sale_quantity_90days": ("sold_90d", base.read_integer),
        "orders_count_30days": ("orders_30d", base.read_integer),
    },
}


class TmapiSource(Source):
    """The adapter registered as `tmapi`."""

    name = "tmapi"
    option_names = _OPTIONS
    filter_names = ("shop_cat_id", "price_start", "price_end")
    steady_sorts: Mapping[str, int] = MappingProxyType({"time_up": 1, "time_down": -1})
    sticky_outcomes = ("417",)

    def credentials(self, settings: Settings) -> tuple[Credential, ...]:
        """One credential for each different token; its name is the start of the token's SHA-256."""
        return _credentials(settings.tmapi_tokens)

    def credential_help(self) -> str:
        """One line that tells a user how to configure a credential."""
        return "set SHOPCRAWL_TMAPI_TOKENS to your apiToken (https://console.tmapi.io, Account Center)"

    def base_url(self, settings: Settings) -> str:
        """The address that calls go to, without a slash at its end. Raises UsageError if it is no http(s) address."""
        return base.checked_url(settings.tmapi_base_url, "SHOPCRAWL_TMAPI_BASE_URL", "https://api.tmapi.io")

    def limits(self, settings: Settings) -> Limits:
        """The limiter's bounds for each token."""
        return Limits.of(
            concurrency=(
                settings.tmapi_concurrency_start,
                settings.tmapi_concurrency_min,
                settings.tmapi_concurrency_max,
                settings.tmapi_concurrency_fixed,
            ),
            rate=settings.tmapi_rate,
            per_minute=settings.tmapi_rate_per_minute,
            per_day=settings.tmapi_calls_per_day,
        )

    def prices(self, settings: Settings) -> Prices:
        """As set: the vendor publishes none."""
        return parse_prices(settings.tmapi_prices)

    def daily_caps(self, settings: Settings) -> tuple[int | None, Decimal | None]:
        """As set."""
        return settings.tmapi_daily_calls, settings.tmapi_daily_spend

    def check_shop(self, shop: str) -> None:
        """Accept a member id: 1 to 128 letters, digits, Chinese characters and `_ . @ -`. Raises UsageError."""
        if not _SHOP.fullmatch(shop):
            reason = "is empty" if not shop else "is too long" if len(shop) > 128 else "has characters no member id has"
            raise UsageError(f"shop {base.shown(shop)} {reason} (allowed: 1 to 128 letters, digits and _ . @ -)")

    def options(self, given: Mapping[str, str], settings: Settings) -> dict[str, Any]:
        """Validate options and fill in defaults; an empty text counts as not given. Raises UsageError."""
        unknown = [name for name in given if name not in _OPTIONS]
        if unknown:
            raise UsageError(f"unknown option {base.shown(unknown[0])} for tmapi; known: {', '.join(_OPTIONS)}")
        chosen = {name: str(value).strip() for name, value in given.items() if str(value).strip()}
        most_pages = settings.max_pages
        options: dict[str, Any] = {
            "sort": _choice("sort", chosen.get("sort", DEFAULT_SORT)),
            "page_size": base.whole_number("page_size", chosen.get("page_size", settings.page_size), MAX_PAGE_SIZE),
            "max_pages": base.whole_number("max_pages", chosen.get("max_pages", most_pages), most_pages),
        }
        if "max_calls" in chosen:
            options["max_calls"] = base.whole_number("max_calls", chosen["max_calls"], base.MAX_CALLS)
        for name, form in (("shop_cat_id", _CATEGORY), ("price_start", _PRICE), ("price_end", _PRICE)):
            if name in chosen:
                options[name] = _matching(name, chosen[name], form)
        low, high = options.get("price_start"), options.get("price_end")
        if low and high and Decimal(low) > Decimal(high):
            raise UsageError(f"price_start {low} is above price_end {high}")
        return options

    def newest(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The newest items first: behind a page of known ones there are no new ones."""
        return {**options, "sort": NEWEST_FIRST}

    def request(
        self,
        task: PageTask,
        credential: Credential,
        settings: Settings,
        now: datetime,  # noqa: ARG002 (for signed APIs)
        session: str | None = None,  # noqa: ARG002 (this API knows none)
    ) -> HttpRequest:
        """Build the call for one page; parameters that are not set are left out."""
        options = task.options
        params = {
            "apiToken": credential.secret,
            "member_id": task.shop,
            "page": str(task.page),
            "page_size": str(options.get("page_size", settings.page_size)),
            "sort": str(options.get("sort", DEFAULT_SORT)),
        }
        params.update({name: str(options[name]) for name in TmapiSource.filter_names if options.get(name)})
        return HttpRequest("GET", self.base_url(settings) + PATH, params, {"Accept": "application/json"})

    def decode(self, response: HttpResponse, task: PageTask, now: datetime) -> FetchedPage:  # noqa: ARG002 (not needed)
        """Read an answer by both channels: a body `code` other than 200 counts, else the HTTP status.

        Raises a FetchError whose class names the reaction; never any other error.
        """
        usual = usual_answer(response)
        if usual is not None and len(usual[1]) <= MAX_ITEMS:
            data, items = usual
            return _fetched(items, data.total_count, data.page_size, [])
        return self.decode_any(response)

    def decode_any(self, response: HttpResponse) -> FetchedPage:
        """Read an answer of any shape, key by key; slower than the short way and the measure of its results."""
        try:
            answer = base.parse_json(response.body)
        except TransientError:
            if response.status // 100 != 2:
                raise _error(response.status, "", response) from None
            raise
        if not isinstance(answer, dict):
            answer = {"msg": "JSON, but no object"}
        code = _body_code(answer)
        if code in {None, OK} and response.status // 100 == 2:
            return _page(answer, code)
        raise _failure(code, answer, response)


def _failure(code: int | None, answer: dict[str, Any], response: HttpResponse) -> FetchError:
    """The body's number wins, unless it is one nobody documented beside an HTTP status that says more."""
    message = base.one_line(answer.get("msg") or answer.get("message") or "")
    failed = response.status // 100 != 2
    if code is None or code == OK or (failed and code not in _KNOWN):
        return _error(response.status, message, response)
    if code == 404 and not failed:
        # The API itself answered, so the address is right: this must not stop every other shop.
        return TransientError("404", message or "not found")
    return _error(code, message, response)


_KNOWN = {
    417: (TransientError, "the vendor could not get the data"),
    422: (ShopRefusedError, "the vendor refuses the parameters"),
    439: (CredentialParkedError, "the subscription has expired or the balance is used up"),
    499: (TransientError, "the vendor's own source was too slow"),
    500: (TransientError, "unexpected error at the vendor"),
    503: (ThrottledError, "more calls at once than the vendor allows"),
}


def _error(status: int, message: str, response: HttpResponse) -> FetchError:
    """The vendor's numbers do not have their HTTP meaning: its own table comes first, gateways' after it."""
    if status not in _KNOWN:
        return base.status_error(status, message, response)
    reaction, meaning = _KNOWN[status]
    return reaction(str(status), message or meaning, retry_after=base.retry_after(response))


def _body_code(answer: dict[str, Any]) -> int | None:
    code = answer.get("code")
    if isinstance(code, str) and code.strip().isascii() and code.strip().isdigit():
        return int(code.strip()[:9])
    if isinstance(code, float) and code.is_integer():
        return _bounded(int(code))
    return _bounded(code) if isinstance(code, int) and not isinstance(code, bool) else None


def _bounded(code: int) -> int:
    """No code that anybody means: the ledger keeps it as text, which must not be as long as a server likes."""
    return max(-1, min(code, 10**9))


def _page(answer: dict[str, Any], code: int | None) -> FetchedPage:
    data = answer.get("data")
    if not isinstance(data, dict):
        word = "no-data" if data is None else "data-type"
        raise TransientError(word, f"success without a data object: {base.one_line(answer.get('msg') or data or '')}")
    rows = data.get("items")
    if rows is not None and not isinstance(rows, list):
        raise TransientError("items-type", "the items are not a list")
    if code is None and rows is None:
        raise TransientError("no-code", "neither a code nor items")
    if len(rows or ()) > MAX_ITEMS:
        raise TransientError("oversize", f"{len(rows or ())} items on one page")
    anomalies = [] if code is not None else ["no-code"]
    if rows is None:
        anomalies.append("items-null" if "items" in data else "items-missing")
    items = [item for row in rows or () if (item := _item(row, anomalies)) is not None]
    return _fetched(items, data.get("total_count"), data.get("page_size"), anomalies)


def _fetched(items: list[Item], total_count: Any, page_size: Any, anomalies: list[str]) -> FetchedPage:
    total, size = _total(total_count, anomalies), _page_size(page_size, anomalies)
    return FetchedPage(items, total, size, tuple(dict.fromkeys(anomalies))[:MAX_ANOMALIES])


def _item(row: Any, anomalies: list[str]) -> Item | None:
    if not isinstance(row, dict):
        anomalies.append("item-not-object")
        return None
    item_id = _item_id(row.pop("item_id", None))
    if item_id is None:
        anomalies.append("item-without-id")
        return None
    fields: dict[str, Any] = {}
    groups = [(group, table, row.pop(group, None)) for group, table in _GROUPS.items()]
    extra = base.read_fields(row, _ITEM_FIELDS, fields, anomalies)
    for group, table, nested in groups:
        if isinstance(nested, dict):
            left = base.read_fields(nested, table, fields, anomalies)
        elif left := nested:
            anomalies.append(f"bad-{group}")
        if left:
            base.keep(extra, group, left, anomalies)
    return Item(item_id=item_id, extra=extra or None, **fields)


def _item_id(value: Any) -> str | None:
    if type(value) is int:
        value = str(value) if 0 < value <= base.MAX_INTEGER else ""
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if _ITEM_ID.fullmatch(value) else None


def _total(value: Any, anomalies: list[str]) -> int | None:
    """The claimed number of items; display text such as "1.5万+" is read as the round number it shows."""
    if value is None or value == "":
        return None
    text = str(value).strip().replace(",", "") if type(value) in (str, int) else ""
    found = _ROUNDED_TOTAL.fullmatch(text) if len(text) < 20 else None
    total = int(Decimal(found[1]) * _UNITS[found[2]]) if found else MAX_TOTAL + 1
    if total > MAX_TOTAL:
        anomalies.append("bad-total")
        return None
    if not text.isdigit():
        anomalies.append("rounded-total")
    return total


def _page_size(value: Any, anomalies: list[str]) -> int | None:
    if value is None or value == "":
        return None
    try:
        size = base.read_integer(value)
    except base.UNREADABLE:
        size = 0
    if 0 < size <= MAX_ITEMS:
        return size
    anomalies.append("bad-page-size")
    return None


@cache  # asked for with every page
def _credentials(tokens: tuple[SecretStr, ...]) -> tuple[Credential, ...]:
    secrets = dict.fromkeys(token.get_secret_value() for token in tokens)
    return tuple(Credential(hashlib.sha256(secret.encode()).hexdigest()[:8], secret) for secret in secrets)


def _choice(name: str, value: str) -> str:
    if value not in SORTS:
        raise UsageError(f"{name} {base.shown(value)} is unknown; choose one of {', '.join(SORTS)}")
    return value


def _matching(name: str, value: str, form: re.Pattern[str]) -> str:
    if not form.fullmatch(value):
        kind = "a price such as 12 or 12.50" if form is _PRICE else "letters, digits, _ and -"
        raise UsageError(f"{name} must be {kind}, not {base.shown(value)}")
    return value
