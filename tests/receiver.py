"""A subscriber: an HTTP server that checks each message as its documentation says, and answers as a test likes."""

import hashlib
import hmac
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.changes import SECRET

HUNG_UP = 0
"""Instead of a status: the connection is closed without an answer."""


@dataclass(frozen=True)
class Message:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    secret: str

    @property
    def genuine(self) -> bool:
        """Whether the signature fits: written anew here, with nothing of ours."""
        found = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", self.headers.get("x-shopcrawl-signature", ""))
        if found is None:
            return False
        signed = b".".join((found[1].encode(), self.body))
        return hmac.digest(self.secret.encode(), signed, "sha256") == bytes.fromhex(found[2])

    @property
    def content(self) -> dict[str, Any]:
        """The body."""
        return dict(json.loads(self.body))

    @property
    def ids(self) -> list[int]:
        """The ids of the changes in it."""
        return [each["id"] for each in self.content["deliveries"]]

    @property
    def digest(self) -> str:
        """A fingerprint of the body."""
        return hashlib.sha256(self.body).hexdigest()


@dataclass
class Reply:
    """What to answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    then: Callable[[], None] | None = None
    """What to do once the answer has left."""


class Receiver(ThreadingHTTPServer):
    """Takes messages in threads; `answer` decides, from the message and how many came before it."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Message, int], Reply | int], secret: str = SECRET) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.secret = answer, secret
        self.messages: list[Message] = []
        self.taken: list[Message] = []
        self.busy: dict[int, int] = {}
        self.most_at_once = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}/changes"

    @property
    def ids(self) -> list[int]:
        """The ids of the changes that it took, in the order in which they came."""
        return [each for message in self.taken for each in message.ids]

    def receive(self, message: Message) -> Reply:
        """Note a message and decide what to answer."""
        subscription = message.content["subscription"]
        with self._lock:
            number = len(self.messages)
            self.messages.append(message)
            self.busy[subscription] = self.busy.get(subscription, 0) + 1
            self.most_at_once = max(self.most_at_once, self.busy[subscription])
        reply = self.answer(message, number)
        reply = Reply(reply) if isinstance(reply, int) else reply
        with self._lock:
            self.busy[subscription] -= 1
            if 200 <= reply.status < 300:
                self.taken.append(message)
        return reply

    def handle_error(self, request: object, client_address: object) -> None:
        """A sender that dies need not be told of."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.receive(Message(self.path, headers, body, self.server.secret))
        self.close_connection = True
        if reply.status == HUNG_UP:
            return
        head = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        length = f"Content-Length: {len(reply.body)}\r\n"
        self.wfile.write(f"HTTP/1.1 {reply.status} Said\r\n{length}{head}\r\n".encode() + reply.body)
        self.wfile.flush()
        if reply.then is not None:
            reply.then()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def receiving(
    answer: Callable[[Message, int], Reply | int] = lambda message, number: 200,
    *,
    secret: str = SECRET,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Receiver]:
    """A receiver that runs while the body does; every message to it must have been genuine."""
    server = Receiver(answer, secret)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
        assert all(message.genuine for message in server.messages)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
