"""Runs the console script's function inside the test process: as the command would, without its start-up time."""

import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import structlog

from producer.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    raw: bytes
    """Standard output, undecoded."""


def run_here(folder: Path, *arguments: str, env: Mapping[str, object] | None = None, stdin: bytes = b"") -> Done:
    """Run `shopcrawl ARGUMENTS` in `folder`, with no setting but `env` (names without their prefix)."""
    settings = {f"SHOPCRAWL_{name.upper()}": str(value) for name, value in (env or {}).items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SHOPCRAWL_")}
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        _logging_restored(),
        chdir(folder),
        patch.dict(os.environ, inherited | settings | {"COLUMNS": "160"}, clear=True),
        patch.multiple(sys, argv=["shopcrawl", *arguments], stdout=out, stderr=err),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    raw, told = (stream.buffer.getvalue() for stream in (out, err))
    return Done(int(ended.value.code or 0), raw.decode(errors="replace"), told.decode(), raw)


@contextmanager
def _logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
