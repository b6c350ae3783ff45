"""A source whose shops need sessions, for tests: it answers by what its fake client knows of each session."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from models.errors import ShopUnauthorisedError, TransientError, UsageError
from models.messages import PageTask
from models.settings import Settings
from models.source import (
    Credential,
    FetchedPage,
    HttpRequest,
    HttpResponse,
    Item,
    Limits,
    Source,
    source_named,
    source_names,
)


class SessionSource(Source):
    """Takes the place of `top`: rows come as they are, `27` refuses the session, `500` is a fault."""

    name = "top"
    needs_session = True

    def credentials(self, settings: Settings) -> tuple[Credential, ...]:
        return (Credential("app-1", "app-secret"),)

    def credential_help(self) -> str:
        return "nothing to set"

    def base_url(self, settings: Settings) -> str:
        return "https://127.0.0.1:9"

    def limits(self, settings: Settings) -> Limits:
        return Limits(rate=0, start=4, floor=1, ceiling=4)

    def check_shop(self, shop: str) -> None:
        if not shop.isalnum():
            raise UsageError("shop: letters and digits only")

    def options(self, given: Mapping[str, str], settings: Settings) -> dict[str, Any]:
        if given:
            raise UsageError(f"unknown option {min(given)!r}")
        return {"page_size": 20, "max_pages": 10}

    def request(
        self, task: PageTask, credential: Credential, settings: Settings, now: datetime, session: str | None = None
    ) -> HttpRequest:
        return HttpRequest("POST", self.base_url(settings), {}, {}, f"session={session}".encode())

    def decode(self, response: HttpResponse, task: PageTask, now: datetime) -> FetchedPage:
        answer = json.loads(response.body)
        if answer["code"] == 27:
            raise ShopUnauthorisedError("27", answer["msg"])
        if answer["code"] == 500:
            raise TransientError("500", answer["msg"])
        return FetchedPage([Item(item_id="1", title=answer["msg"])], total=1, page_size=20)


@pytest.fixture
def session_source(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let it be the source `top`, beside tmapi."""
    points = [
        EntryPoint("top", "tests.session_source:SessionSource", "shopcrawl.sources"),
        EntryPoint("tmapi", "worker.sources.tmapi:TmapiSource", "shopcrawl.sources"),
    ]
    monkeypatch.setattr("models.source.entry_points", lambda group: points)
    _forget_sources()
    yield
    _forget_sources()


def _forget_sources() -> None:
    source_named.cache_clear()
    source_names.cache_clear()
