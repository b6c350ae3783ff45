"""What the worker tells the world about a task in its hands, and what it keeps of it."""

from typing import Any

from celery.worker.request import Request


class PageRequest(Request):  # type: ignore[misc] # celery's class is untyped
    """A request that keeps its message decoded once, and sends no `task-started` event.

    A page starts the moment it is received, so the event says nothing new, yet sending it costs as much as each of
    the other two: received (with the page's name and arguments) and succeeded, which are what Flower shows.
    """

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        # A thousand of these live at once. The tracer takes a decoded body as well; nobody reads the message again.
        self._body, self._content_type, self._content_encoding = self._payload, None, None
        message.body = message._decoded_cache = None
        message.headers = self._request_dict

    def send_event(self, type: str, **fields: Any) -> Any:
        """Send an event unless it says nothing new."""
        return None if type == "task-started" else super().send_event(type, **fields)
