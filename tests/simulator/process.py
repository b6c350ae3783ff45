"""The simulator as a child process, for tests and tools that are not asyncio."""

import http.client
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


class SimulatorProcess:
    """`with SimulatorProcess(shops=5, seed=1, gate=20) as sim:` runs `python -m tests.simulator --shops 5 ...`.

    Keyword names are the command's options with underscores; a list repeats its option, True is a bare flag, None and
    False leave it out. `extra={"key": items}` adds shops, `top={"nick": items or a specification}` sellers of the
    platform, `switches={...}` sets any switch. The child ends with its parent, however that dies.
    """

    def __init__(self, **options: Any) -> None:
        command = [sys.executable, "-m", "tests.simulator", "--until-eof", *_arguments(options)]
        self._child = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.ready: dict[str, Any] = json.loads(self._first_line())
        except BaseException:
            self.stop()
            raise
        self.url: str = self.ready["url"]
        self.port: int = self.ready["port"]
        self.pid: int = self._child.pid

    def __enter__(self) -> "SimulatorProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call /_sim/<path> and return the decoded answer, a list of objects for NDJSON; ValueError if refused."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, "/_sim/" + path.removeprefix("/_sim/").lstrip("/"), payload)
            answer = connection.getresponse()
            if answer.getheader("Content-Type", "").startswith("application/x-ndjson"):
                return [json.loads(line) for line in answer]
            value = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(value["error"])
        return value

    def script(self, *directives: dict[str, Any]) -> list[int]:
        """Carry out directives and return the numbers of the rules added."""
        return list(self.control("POST", "script", list(directives))["rules"])

    def truth(self, shop: str | None = None) -> list[dict[str, Any]]:
        """Return every item ever on sale, of one shop or of all."""
        return list(self.control("GET", "truth" if shop is None else f"truth?shop={quote(shop)}"))

    def journal(self) -> list[dict[str, Any]]:
        """Return what every answer showed and how the goods moved, in order; needs the switch `journal`."""
        return list(self.control("GET", "journal"))

    def calls(self, shop: str | None = None) -> dict[str, Any]:
        """Return the ledger's figures, in total or for one shop."""
        return dict(self.control("GET", "calls" if shop is None else f"calls?shop={quote(shop)}"))

    def top_sessions(self) -> dict[str, str]:
        """Return the platform's sellers and their sessions for the first app."""
        return {nick: shop["session"] for nick, shop in self.control("GET", "top/shops").items()}

    def top_truth(self, shop: str) -> list[dict[str, Any]]:
        """Return every row a seller ever had."""
        return list(self.control("GET", f"top/truth?shop={quote(shop)}"))

    def top_ids(self, shop: str) -> dict[str, list[int]]:
        """Return the num_iids that were there `throughout`, and all there `ever` were."""
        return dict(self.control("GET", f"top/truth?shop={quote(shop)}&ids=1"))

    def top_calls(self, shop: str | None = None) -> dict[str, Any]:
        """Return the figures of the platform's ledger, in total or for one seller."""
        return dict(self.control("GET", "top/calls" if shop is None else f"top/calls?shop={quote(shop)}"))

    def advance(self, seconds: float) -> dict[str, Any]:
        """Move the virtual clock and return what it shows."""
        return dict(self.control("POST", "clock", {"advance": seconds}))

    def stop(self, *, asked: bool = False) -> int:
        """End the process, unless it was `asked` to end already, and return its exit code; harmless when repeated."""
        if self._child.poll() is None and not asked:
            self._child.terminate()
        try:
            code = self._child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        return code

    def _first_line(self) -> bytes:
        out = self._child.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], _START_SECONDS)
        line = out.readline() if ready else b""
        if not line:
            raise RuntimeError(f"the simulator did not start (exit code {self._child.poll()})")
        return line


def _arguments(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if name == "extra":
            yield from (f"--shop={key}={items}" for key, items in value.items())
        elif name == "top":
            yield from (f"--top={nick}={json.dumps(spec)}" for nick, spec in value.items())
        elif name == "switches":
            yield from (f"--set={switch}={json.dumps(setting)}" for switch, setting in value.items())
        else:
            flag = "--" + name.replace("_", "-")
            values = value if isinstance(value, list | tuple) else [value]
            yield from (
                flag if each is True else f"{flag}={each}" for each in values if each is not None and each is not False
            )
