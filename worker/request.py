"""What the worker tells the world about a task in its hands."""

from typing import Any

from celery.worker.request import Request


class PageRequest(Request):  # type: ignore[misc] # celery's class is untyped
    """A request without the `task-started` event.

    A page starts the moment it is received, so the event says nothing new, yet sending it costs as much as each of
    the other two: received (with the page's name and arguments) and succeeded, which are what Flower shows.
    """

    def send_event(self, type: str, **fields: Any) -> Any:
        """Send an event unless it says nothing new."""
        return None if type == "task-started" else super().send_event(type, **fields)
