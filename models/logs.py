"""Logging: one readable line (or JSON line) per event with its fields, and no secret in any of them."""

import logging
import sys
from typing import Any, TextIO

import structlog

from models.redact import RedactSecrets
from models.settings import Settings

QUIET = ("alembic", "amqp", "asyncio", "kombu", "celery.worker.strategy", "celery.app.trace", "aiosqlite", "aiohttp")


def configure_logging(settings: Settings, stream: TextIO | None = None) -> None:
    """Send the log of this process, Celery's included, to `stream` (standard error) in the form the settings ask for."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.dev.ConsoleRenderer(
        colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    if settings.log_json:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    handler.addFilter(RedactSecrets(settings.secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in QUIET:  # their news is a line per page or per connection
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
