"""Logs: one readable line per event, its fields beside it, no flood, no secret, and no torn terminal."""

import io
import json
import logging
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from rich.console import Console
from rich.live import Live

from models.errors import UsageError
from models.logs import FLOOD_BURST, FLOOD_WINDOW, HoldFlood, configure_logging
from models.settings import Settings, load_settings

CANARY = "canary-of-the-logs"
CELERYS_FLOOD = """\
Task %s cannot be acknowledged after a connection loss since late acknowledgement is enabled for it.
Terminating it instead.
"""


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def settings(**values: object) -> Settings:
    return load_settings(tmapi_tokens=CANARY, **values)


def test_event_is_one_readable_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings())
    logging.getLogger("worker.crawl").warning(
        "given up after\n %d tries", 5, extra={"crawl": 7, "shop": "jane", "page": 3}
    )
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for part in ("warning", "given up after 5 tries", "[worker.crawl]", "crawl=7", "shop=jane", "page=3"):
        assert part in line


def test_json_lines_carry_crawl_shop_and_page_as_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings(log_json=True))
    fields = {"crawl": 7, "shop": "店铺", "page": 3}
    logging.getLogger("worker.crawl").info("page stored", extra=fields)
    structlog.get_logger("producer.local").warning("worker died", worker="worker-1", exit_code=137)
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "page stored", "level": "info", "logger": "worker.crawl", **fields}
    assert second["event"] == "worker died" and second["level"] == "warning"
    assert (second["worker"], second["exit_code"], second["logger"]) == ("worker-1", 137, "producer.local")


@pytest.mark.parametrize("log_json", [True, False])
def test_scraped_text_in_a_field_neither_breaks_the_line_nor_steers_the_terminal(
    capsys: pytest.CaptureFixture[str], log_json: bool
) -> None:
    configure_logging(settings(log_json=log_json))
    evil = f"no\n2026-01-01 [error] forged\r\x1b]0;owned\x07\u2028\u202e {CANARY} " + "x" * 10_000
    logging.getLogger("worker.crawl").error("page dead", extra={"crawl": 1, "shop": "店\n铺", "reason": evil})
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and len(told) < 1_000
    assert told.rstrip("\n").isprintable()
    assert "店 铺" in told and "no 2026-01-01 [error] forged" in told and CANARY not in told


@pytest.mark.parametrize("log_json", [True, False])
def test_no_secret_in_message_field_or_traceback(capsys: pytest.CaptureFixture[str], log_json: bool) -> None:
    configure_logging(settings(log_json=log_json))
    try:
        raise ValueError(f"GET /?apiToken={CANARY}")
    except ValueError:
        logging.getLogger("a").exception("with %s", CANARY, extra={"url": f"http://h/?k={CANARY}"})
        structlog.get_logger("b").exception("with %s", CANARY, url=f"http://h/?k={CANARY}")
    told = capsys.readouterr().err
    assert told.count("Traceback") == 2 and "***" in told
    assert CANARY not in told


@pytest.mark.parametrize("name", ["celery.app.trace", "celery.worker.strategy", "kombu", "aiosqlite"])
def test_lines_per_page_and_connection_stay_out(capsys: pytest.CaptureFixture[str], name: str) -> None:
    configure_logging(settings())
    logging.getLogger(name).info("Task crawl_page[1-1] succeeded")
    assert capsys.readouterr().err == ""


def test_connection_loss_with_every_slot_busy_writes_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings())
    for page in range(1_000):
        logging.getLogger("celery.worker.consumer.consumer").warning(CELERYS_FLOOD, f"crawl_page[{page}-1]")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == FLOOD_BURST
    assert "crawl_page[0-1] cannot be acknowledged" in lines[0]
    assert f"more of these within {FLOOD_WINDOW:g} s are left out" in lines[-1]


def test_flood_ends_with_its_window_and_spares_other_lines() -> None:
    now = 0.0
    hold = HoldFlood(clock=lambda: now)

    def passes(text: str, *args: object, level: int = logging.INFO) -> bool:
        return hold.filter(logging.LogRecord("n", level, "p", 1, text, args, None))

    assert [passes("task %s", n) for n in range(7)] == [True] * FLOOD_BURST + [False] * 2
    assert passes("another text")
    assert passes("task %s", 8, level=logging.ERROR)
    assert all(passes("task %s", n, level=logging.DEBUG) for n in range(20))
    now = FLOOD_WINDOW
    assert passes("task %s", 9)


def test_texts_without_end_do_not_fill_the_memory() -> None:
    now = 0.0
    hold = HoldFlood(clock=lambda: now)
    for number in range(5_000):
        now += 1
        hold.filter(logging.LogRecord("n", logging.INFO, "p", 1, f"text {number}", (), None))
    assert len(hold._windows) <= 1_001


def test_with_a_log_file_only_warnings_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data" / "logs" / "shopcrawl.log"
    configure_logging(settings(), log_file=path)
    assert not path.exists()
    logger = logging.getLogger("producer.loop")
    logger.info("dispatch works again")
    for number in range(20):
        logger.warning("pages %d were lost %s", number, CANARY)
    told, kept = capsys.readouterr().err, path.read_text()
    assert "works again" not in told and told.count("were lost") == FLOOD_BURST
    assert "works again" in kept and kept.count("were lost") == 20
    assert CANARY not in told + kept
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"SHOPCRAWL_DATA_DIR: cannot write to .*file/logs"):
        configure_logging(settings(), log_file=tmp_path / "file" / "logs" / "x.log")


def test_warning_stands_above_a_live_display_and_does_not_tear_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging(settings(), log_file=tmp_path / "shopcrawl.log")
    console = Console(file=terminal, force_terminal=True, width=100, color_system=None)
    with Live("BLOCK", console=console, auto_refresh=False, transient=True) as live:
        live.update("BLOCK", refresh=True)
        logging.getLogger("producer.local").warning("worker died")
    frames = terminal.getvalue()
    before, _, after = frames.partition("worker died")
    assert before.endswith("[warning  ] ")
    assert "\x1b[2K" in before[before.rindex("BLOCK") :], "the block is erased first"
    assert "BLOCK" in after, "and drawn again below"
