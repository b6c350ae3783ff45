"""Two sources of an invented API, complete in this file, as somebody else's package would bring them."""

import hashlib
import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from models.errors import ShopRefusedError, ShopUnauthorisedError, TransientError, UsageError
from models.messages import PageTask
from models.settings import Settings
from models.source import Credential, FetchedPage, HttpRequest, HttpResponse, Item, Limits, Source, WindowRules
from worker.sources import base


class ShelfSource(Source):
    """Registered as `shelf`: a listing whose pages are read one after the other to the end."""

    name = "shelf"
    option_names: tuple[str, ...] = ("page_size", "max_pages", "colour")
    filter_names: tuple[str, ...] = ("colour",)

    def credentials(self, settings: Settings) -> tuple[Credential, ...]:
        keys = os.environ.get("SHELF_KEYS", "").split()
        return tuple(Credential(hashlib.sha256(key.encode()).hexdigest()[:8], key) for key in keys)

    def credential_help(self) -> str:
        return "set SHELF_KEYS to your keys, separated by spaces"

    def base_url(self, settings: Settings) -> str:
        url = os.environ.get("SHELF_URL", "https://shelf.example")
        return base.checked_url(url, "SHELF_URL", "https://shelf.example")

    def limits(self, settings: Settings) -> Limits:
        return Limits(rate=0, start=4, floor=1, ceiling=20)

    def check_shop(self, shop: str) -> None:
        if not (shop.isascii() and shop.isalnum()):
            raise UsageError(f"shop {base.shown(shop)} is no shelf: letters and digits only")

    def options(self, given: Mapping[str, str], settings: Settings) -> dict[str, Any]:
        unknown = sorted(given.keys() - set(self.option_names))
        if unknown:
            raise UsageError(f"unknown option {base.shown(unknown[0])} for {self.name}")
        numbers = {
            "page_size": base.whole_number("page_size", given.get("page_size", 5), 100),
            "max_pages": base.whole_number("max_pages", given.get("max_pages", settings.max_pages), settings.max_pages),
        }
        return {**given, **numbers}

    def request(
        self, task: PageTask, credential: Credential, settings: Settings, now: datetime, session: str | None = None
    ) -> HttpRequest:
        params = {"shop": task.shop, "page": str(task.page), "size": str(task.options["page_size"])}
        params |= {name: str(task.options[name]) for name in self.filter_names if name in task.options}
        headers = {"Authorization": f"Bearer {credential.secret}"}
        return HttpRequest("GET", f"{self.base_url(settings)}/items", params, headers)

    def decode(self, response: HttpResponse, task: PageTask, now: datetime) -> FetchedPage:
        if response.status == 410:
            raise ShopRefusedError("410", "the shelf has been taken down")
        if response.status != 200:
            raise base.status_error(response.status, "", response)
        answer = base.parse_json(response.body)
        try:
            items = [_item(row) for row in answer["items"]]
            return FetchedPage(items, total=base.read_integer(answer["total"]))
        except (KeyError, *base.UNREADABLE):
            failure = TransientError("shape", "the answer is no list of items")
        raise failure


def _item(row: Mapping[str, Any]) -> Item:
    return Item(
        item_id=base.read_text(row["id"]), title=base.read_text(row["title"]), price=base.read_decimal(row["price"])
    )


class TimedShelfSource(ShelfSource):
    """Registered as `timed-shelf`: a listing that shows 20 rows at most, of shops that need sessions."""

    name = "timed-shelf"
    option_names = (*ShelfSource.option_names, "order_by", "since")
    filter_names = ("colour", "since")
    needs_session = True

    def windows(self, settings: Settings) -> WindowRules:
        return WindowRules(reach=20, margin=timedelta(seconds=1), overlap=timedelta(minutes=10))

    def options(self, given: Mapping[str, str], settings: Settings) -> dict[str, Any]:
        return super().options({"order_by": "modified:asc", **given}, settings)

    def request(
        self, task: PageTask, credential: Credential, settings: Settings, now: datetime, session: str | None = None
    ) -> HttpRequest:
        call = super().request(task, credential, settings, now)
        window = {name: str(task.options.get(name, "")) for name in ("start_modified", "end_modified", "order_by")}
        return HttpRequest(call.method, call.url, {**call.params, **window, "session": session or ""}, call.headers)

    def decode(self, response: HttpResponse, task: PageTask, now: datetime) -> FetchedPage:
        if response.status == 419:
            raise ShopUnauthorisedError("419", "the session is refused")
        return super().decode(response, task, now)
