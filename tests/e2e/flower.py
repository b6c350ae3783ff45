"""A client of Flower's pages and API."""

import http.client
import json
import re
from base64 import b64encode
from typing import Any, NamedTuple

ASKED = "Events of group {task} enabled"
"""What a worker logs once Flower has asked it for task events, which it does every 5 s."""


class Answer(NamedTuple):
    """What Flower answered."""

    status: int
    text: str

    def json(self) -> Any:
        """The body, decoded."""
        assert self.status == 200, self
        return json.loads(self.text)


class Flower:
    """Flower on a loopback port, asked with a user and password or as a stranger."""

    def __init__(self, port: int, user: str = "", password: str = "") -> None:
        self.port = port
        credentials = b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {credentials}"} if user else {}

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        """Make one request. Raises OSError if Flower does not listen."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, self._headers | headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode())
        finally:
            connection.close()

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return self.ask("/healthcheck").status == 200
        except OSError:
            return False

    def workers(self) -> dict[str, Any]:
        """The workers that answer now, by name."""
        found = self.ask("/api/workers?refresh=1").json()
        return {name: about for name, about in found.items() if "stats" in about}

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Every task that Flower has seen, by id."""
        return dict(self.ask("/api/tasks?limit=10000").json())

    def pool_size(self, worker: str) -> int:
        """How many pages a worker may hold."""
        return int(self.workers()[worker]["stats"]["pool"]["max-concurrency"])


def links(page: str) -> list[str]:
    """The pages that a page links to."""
    return sorted(set(re.findall(r'href="(/[^"#]*)"', page)))
