"""Logging: one readable line (or JSON line) per event with its fields, and no secret in any of them."""

import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import structlog

from models.errors import UsageError
from models.redact import RedactSecrets
from models.settings import Settings

QUIET = ("alembic", "amqp", "asyncio", "kombu", "celery.worker.strategy", "celery.app.trace", "aiosqlite", "aiohttp")
FLOOD_BURST, FLOOD_WINDOW = 5, 10.0  # lines that differ only in their arguments, and seconds
LONGEST_FIELD = 500
LOG_BYTES = 10 * 1024 * 1024


def configure_logging(settings: Settings, *, log_file: Path | None = None) -> None:
    """Send the log of this process, Celery's included, to standard error in the form the settings ask for.

    With a `log_file` everything goes there and only warnings to standard error: for commands that show something else
    on the terminal. Raises UsageError if the file's folder cannot be made.
    """
    terminal: logging.Handler = CurrentStderr()
    terminal.addFilter(HoldFlood())
    handlers = [terminal]
    if log_file is not None:
        terminal.setLevel(logging.WARNING)
        handlers.append(_file_handler(log_file))  # after the terminal: redaction fills in what floods are known by
    formatter = _formatter(json=settings.log_json)
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(RedactSecrets(settings.secrets))
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(settings.log_level)
    for name in QUIET:  # their news is a line per page or per connection
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


class CurrentStderr(logging.Handler):
    """Writes to whatever is standard error at the moment: a live display puts itself there to keep its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # as the standard library's handlers: logging never breaks the program
            self.handleError(record)


@dataclass
class _Window:
    since: float
    seen: int = 0


class HoldFlood(logging.Filter):
    """Let through a few lines made from one text in a window of time, and say so where the rest is left out.

    Celery alone writes a line per page in flight whenever its broker goes away.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[tuple[str, int, str], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is among the first few; the last of them is made to tell that others are left out."""
        if record.levelno < logging.INFO:  # whoever asks for DEBUG wants it all
            return True
        now, key = self._clock(), (record.name, record.levelno, _template(record))
        if len(self._windows) > 1_000:
            self._windows = {k: window for k, window in self._windows.items() if now - window.since < FLOOD_WINDOW}
        window = self._windows.setdefault(key, _Window(now))
        if now - window.since >= FLOOD_WINDOW:
            window.since, window.seen = now, 0
        window.seen += 1
        if window.seen == FLOOD_BURST:
            _add_note(record, f"(more of these within {FLOOD_WINDOW:g} s are left out)")
        return window.seen <= FLOOD_BURST


def _template(record: logging.LogRecord) -> str:
    """The text before its arguments are filled in, or the event's name."""
    return str(record.msg.get("event") if isinstance(record.msg, dict) else record.msg)


def _add_note(record: logging.LogRecord, note: str) -> None:
    if isinstance(record.msg, dict):
        record.msg = {**record.msg, "event": f"{record.msg.get('event')} {note}"}
    else:
        record.msg = f"{str(record.msg).rstrip()} {note}"


def _file_handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(f"SHOPCRAWL_DATA_DIR: cannot write to {path.parent}: {error.strerror}") from None
    return RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1, delay=True, encoding="utf-8")


def _formatter(*, json: bool) -> logging.Formatter:
    processors: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _on_one_line,
    ]
    renderer: Any = structlog.dev.ConsoleRenderer(
        colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    if json:
        processors.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    steps = [*processors, structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[structlog.stdlib.ExtraAdder()], processors=steps)


def _on_one_line(_logger: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Celery spreads some of its news over several lines, and fields hold scraped text; stacks keep their lines."""
    if level in {"debug", "info", "warning"}:
        event["event"] = _visible(str(event["event"]))
    for name, value in event.items():
        if isinstance(value, str) and name not in {"event", "exception", "stack"}:
            event[name] = _visible(value[:LONGEST_FIELD]) + ("…" if len(value) > LONGEST_FIELD else "")
    return event


def _visible(text: str) -> str:
    """One line without characters that steer a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
