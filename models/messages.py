"""The one message that travels: which page a worker shall fetch, readable and without secrets."""

import re
from typing import Any

import msgspec

TASK_NAME = "crawl_page"
RECRAWL_TASK_NAME = "recrawl_shops"
QUEUE = "pages"
URGENT_QUEUE = "pages.urgent"
CLIENT_QUEUE = "celery"
"""Where any Celery client sends by default: a re-crawl can be asked for without knowing our queues."""
URGENT_PRIORITY = 0
NORMAL_PRIORITY = 5

_MESSAGE_ID = re.compile(r"([0-9]{1,19})-([0-9]{1,10})")


class PageTask(msgspec.Struct, frozen=True):
    """A page to fetch; `fence` rises with each sending, so that only the newest sending can be stored."""

    source: str
    shop: str
    page: int
    page_id: int
    fence: int
    shop_id: int
    shop_crawl_id: int
    crawl_id: int
    priority: int = NORMAL_PRIORITY
    tries: int = 0
    credential: str | None = None
    """Only this credential may be used: set for the probe of a parked one."""
    options: dict[str, Any] = {}

    @property
    def message_id(self) -> str:
        """The Celery task id: unique for each sending and readable by the reconciler."""
        return message_id(self.page_id, self.fence)

    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments for the Celery task, as shown in Flower."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]


def queue_for(priority: int) -> str:
    """The queue a page of this priority goes to."""
    return URGENT_QUEUE if priority < NORMAL_PRIORITY else QUEUE


def message_id(page_id: int, fence: int) -> str:
    """The Celery task id of one sending of a page."""
    return f"{page_id}-{fence}"


def parse_message_id(text: str) -> tuple[int, int] | None:
    """(page_id, fence) of a task id made by `message_id`, None for any other text."""
    found = _MESSAGE_ID.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None
