"""Task events in large lots: each lot is a call to Redis, during which the main thread loses the interpreter."""

from typing import Any

from celery.events.dispatcher import EventDispatcher

LARGEST_LOT = 200  # Celery's own is 24; what has gathered is sent at the end of every turn of the main loop anyway


class Dispatcher(EventDispatcher):  # type: ignore[misc] # celery's class is untyped
    """Celery's dispatcher with more patience."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"buffer_limit": LARGEST_LOT} | options)
