"""Bad input and bad surroundings: one clear line, exit code 2, and nothing that was there before is touched."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.e2e.here import Done, run_here
from tests.servers import PostgresServer, free_port

SHOPS = "shop\njane727\nb2b-1\n"
TOKEN = "canary-of-bad-input"
Contents = dict[str, list[tuple[object, ...]]]


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a crawl that has been asked for and not begun."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "shops.csv").write_text(SHOPS)
    done = run_here(folder, "crawl", "shops.csv", "--no-follow", "--quiet", env=settings(folder))
    assert (done.code, done.out, done.err) == (0, "", "")
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(begun, tmp_path / "copy")


def settings(folder: Path, **others: object) -> dict[str, object]:
    """Sound settings of an embedded crawl, but for `others`."""
    return {"data_dir": folder, "tmapi_tokens": TOKEN, "tmapi_base_url": "http://127.0.0.1:9"} | others


def contents(folder: Path) -> Contents:
    """Every row of every table of the embedded database."""
    with sqlite3.connect(folder / "shopcrawl.db") as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in names}
    connection.close()
    assert len(rows["shop_crawl"]) == 2
    return rows


def assert_one_clear_line(done: Done, *words: str) -> None:
    """Exit code 2, nothing on standard output, and one line on standard error that says what is wrong."""
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("shopcrawl: ") and done.err.count("\n") == 1, done.err
    assert len(done.err) < 450
    assert "shopcrawl: unexpected" not in done.err and "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert TOKEN not in done.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(b"", ("no shops in it",), id="empty"),
        pytest.param(b"\n \n,\n", ("no shops in it",), id="blank"),
        pytest.param(b"shop,source\n", ("no shops in it",), id="only-a-header"),
        pytest.param(b"store,source\nx,tmapi\n", ("line 1", "bad header", "`shop`", "store, source"), id="bad-header"),
        pytest.param(b"shop,Shop\nx,y\n", ("line 1", "bad header", "'shop'"), id="column-twice"),
        pytest.param(b"shop\na1\n\na1\n", ("line 4", "'a1'", "line 2"), id="duplicate"),
        pytest.param(b"a1\nb1\na1\n", ("line 3", "'a1'", "line 1"), id="duplicate-without-header"),
        pytest.param(b"shop\nit's\n", ("line 2", "member id"), id="quote"),
        pytest.param(b'shop\n"say ""hi"""\n', ("line 2", "member id"), id="double-quotes"),
        pytest.param(b"shop\nx'; DROP TABLE shop; --\n", ("line 2", "member id"), id="sql"),
        pytest.param(b'shop\n"one\ntwo"\n', ("line 3", "member id"), id="newline"),
        pytest.param(b'shop\n"one\r\ntwo"\n', ("line 3", "member id"), id="carriage-return"),
        pytest.param(b"shop\na\0b\n", ("line 2",), id="nul"),
        pytest.param(b"shop\na\x1b[31mb\n", ("line 2", "member id"), id="escape-sequence"),
        pytest.param(b"shop\n" + b"x" * 10_240 + b"\n", ("line 2", "too long"), id="10-kB"),
        pytest.param(b"shop\n" + b"x" * 100_000 + b"\n", ("line 2", "larger than"), id="100-kB"),
        pytest.param(b"shop\nok\n\xff\xfe\n", ("line 3", "UTF-8"), id="not-utf-8"),
        pytest.param(b"shop,source\na1,etsy\n", ("line 2", "unknown source 'etsy'", "tmapi"), id="unknown-source"),
        pytest.param(b"shop\na1,b1\n", ("line 2", "2 cells"), id="cell-without-column"),
        pytest.param(b"shop,colour\na1,red\n", ("line 2", "unknown option", "colour"), id="unknown-option"),
        pytest.param(b"shop,sort\na1,up\n", ("line 2", "sort", "time_up"), id="unknown-sort"),
        pytest.param(b"shop,page_size\na1,0\n", ("line 2", "page_size"), id="page-size-0"),
        pytest.param(b"shop,max_pages\na1,ten\n", ("line 2", "max_pages"), id="max-pages-in-words"),
        pytest.param(b"shop,price_start,price_end\na1,9,1\n", ("line 2", "price_start 9"), id="no-price-fits"),
        pytest.param(b'shop\n"open\n', ("line 2",), id="open-quote"),
    ],
)
def test_bad_shops_file_is_refused_with_its_line(folder: Path, text: bytes, words: tuple[str, ...]) -> None:
    (folder / "bad.csv").write_bytes(text)
    before = contents(folder)
    assert_one_clear_line(run_here(folder, "crawl", "bad.csv", env=settings(folder)), "bad.csv", *words)
    assert contents(folder) == before


def test_bad_line_of_standard_input_is_named(folder: Path) -> None:
    done = run_here(folder, "crawl", "-", env=settings(folder), stdin=b"shop\nbad key\n")
    assert_one_clear_line(done, "standard input, line 2")


NOWHERE = free_port()
EMPTY = {"tmapi_tokens": ""}


@pytest.mark.parametrize(
    ("arguments", "changed", "words"),
    [
        pytest.param("crawl missing.csv", {}, ("missing.csv", "No such file"), id="no-file"),
        pytest.param("crawl .", {}, ("Is a directory",), id="folder-for-file"),
        pytest.param("crawl", {}, ("'shops'",), id="no-argument"),
        pytest.param("crawl shops.csv --source etsy", {}, ("unknown source 'etsy'", "tmapi"), id="unknown-source"),
        pytest.param("crawl shops.csv --sort up", {}, ("sort", "time_up"), id="unknown-sort"),
        pytest.param("crawl shops.csv --page-size 100000", {}, ("page_size",), id="page-size"),
        pytest.param("crawl shops.csv --price-start cheap", {}, ("price_start",), id="price"),
        pytest.param("crawl shops.csv --priority 11", {}, ("--priority",), id="priority"),
        pytest.param("crawl shops.csv --colour red", {}, ("--colour",), id="unknown-option"),
        pytest.param("crowl shops.csv", {}, ("crowl",), id="unknown-command"),
        pytest.param("crawl shops.csv", EMPTY, ("SHOPCRAWL_TMAPI_TOKENS",), id="no-token"),
        pytest.param("recrawl jane727", EMPTY, ("SHOPCRAWL_TMAPI_TOKENS",), id="no-token-to-recrawl"),
        pytest.param("crawl shops.csv", {"page_size": "many"}, ("SHOPCRAWL_PAGE_SIZE",), id="setting-no-number"),
        pytest.param("status", {"concurrency": "0"}, ("SHOPCRAWL_CONCURRENCY",), id="setting-out-of-range"),
        pytest.param("status", {"log_level": "LOUD"}, ("SHOPCRAWL_LOG_LEVEL", "INFO"), id="log-level"),
        pytest.param(
            "crawl shops.csv", {"tmapi_base_url": "ftp://api"}, ("SHOPCRAWL_TMAPI_BASE_URL",), id="api-scheme"
        ),
        pytest.param("crawl shops.csv", {"tmapi_base_url": "api"}, ("SHOPCRAWL_TMAPI_BASE_URL",), id="api-no-url"),
        pytest.param("crawl shops.csv", {"proxy": f"ftp://u:{TOKEN}@h"}, ("SHOPCRAWL_PROXY", "http://"), id="proxy"),
        pytest.param("status", {"database_url": f"mysql://u:{TOKEN}@h/d"}, ("postgresql://",), id="database-scheme"),
        pytest.param(
            "status", {"database_url": f"postgresql://u:{TOKEN}@h:x/d"}, ("SHOPCRAWL_DATABASE_URL",), id="database-port"
        ),
        pytest.param("crawl shops.csv", {"redis_url": f"http://:{TOKEN}@h"}, ("redis://",), id="redis-scheme"),
        pytest.param(
            "crawl shops.csv", {"redis_url": f"redis://:{TOKEN}@h:x/0"}, ("SHOPCRAWL_REDIS_URL",), id="redis-port"
        ),
        pytest.param(
            "crawl shops.csv",
            {"redis_url": f"redis://:{TOKEN}@127.0.0.1:{NOWHERE}/0"},
            ("Redis", "SHOPCRAWL_REDIS_URL"),
            id="redis-away",
        ),
        pytest.param("resume", {"redis_url": f"redis://127.0.0.1:{NOWHERE}/0"}, ("Redis",), id="redis-away-to-resume"),
        pytest.param("up", {"redis_url": f"redis://127.0.0.1:{NOWHERE}/0"}, ("Redis",), id="redis-away-for-up"),
        pytest.param(
            "crawl shops.csv",
            {"database_url": f"postgresql://u:{TOKEN}@127.0.0.1:{NOWHERE}/d"},
            ("the database cannot be used", "SHOPCRAWL_DATABASE_URL"),
            id="database-away",
        ),
        pytest.param(
            "db upgrade",
            {"database_url": f"postgresql://u:{TOKEN}@127.0.0.1:{NOWHERE}/d"},
            ("the database cannot be used",),
            id="database-away-to-upgrade",
        ),
        pytest.param(
            "status", {"database_url": "sqlite:////nowhere/at/all.db"}, ("database cannot be used",), id="no-sqlite"
        ),
        pytest.param("status", {"database_url": "sqlite:///shops.csv"}, ("not a database",), id="no-database-file"),
        pytest.param("crawl shops.csv", {"data_dir": "shops.csv"}, ("SHOPCRAWL_DATA_DIR",), id="file-for-data-folder"),
        pytest.param("db upgrade", {"data_dir": "shops.csv/x"}, ("SHOPCRAWL_DATA_DIR",), id="data-folder-in-a-file"),
        pytest.param("crawl shops.csv", {"data_dir": "/proc/no"}, ("SHOPCRAWL_DATA_DIR",), id="unwritable-folder"),
        pytest.param("status 4711", {}, ("no crawl 4711",), id="unknown-crawl"),
        pytest.param("status 4711 --watch", {}, ("no crawl 4711",), id="unknown-crawl-to-watch"),
        pytest.param("status --json 4711", {}, ("no crawl 4711",), id="unknown-crawl-as-json"),
        pytest.param("status one", {}, ("[CRAWL]", "integer"), id="crawl-no-number"),
        pytest.param("status", {"data_dir": "fresh"}, ("nothing has been crawled yet",), id="no-crawl-yet"),
        pytest.param("recrawl", {}, ("--all", "--older-than"), id="recrawl-of-nothing"),
        pytest.param("recrawl --all", {"data_dir": "fresh"}, ("no shop fits",), id="recrawl-before-any-crawl"),
        pytest.param("recrawl --failed", {}, ("no shop fits",), id="recrawl-of-none"),
        pytest.param("recrawl --verdict bad", {}, ("'bad'", "partial"), id="recrawl-unknown-verdict"),
        pytest.param("recrawl --older-than 24", {}, ("'24'", "24h"), id="recrawl-no-duration"),
        pytest.param("recrawl jane 727'", {}, ("shop",), id="recrawl-bad-key"),
        pytest.param("recrawl jane --source etsy", {}, ("unknown source",), id="recrawl-unknown-source"),
        pytest.param("export items --format xml", {}, ("xml", "jsonl"), id="export-format"),
        pytest.param("export items --columns shop,colour", {}, ("colour",), id="export-column"),
        pytest.param("export items --where price~3", {}, ("price", "!=", "is empty"), id="export-where"),
        pytest.param("export sales --since soon -o items.csv", {}, ("'soon'", "24h"), id="export-since"),
        pytest.param("show nobody", {}, ("unknown shop 'nobody'",), id="show-unknown-shop"),
        pytest.param("export items -o no/such/file", {}, ("no/such/file",), id="export-to-nowhere"),
        pytest.param("archive prune --older-than old", {}, ("'old'",), id="prune-no-duration"),
        pytest.param("worker", {"allow_root": "true"}, ("SHOPCRAWL_REDIS_URL is not set",), id="worker-without-redis"),
        pytest.param("producer", {"allow_root": "true"}, ("SHOPCRAWL_REDIS_URL",), id="producer-without-redis"),
        pytest.param("flower", {"allow_root": "true"}, ("SHOPCRAWL_REDIS_URL",), id="flower-without-redis"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_done(
    folder: Path, arguments: str, changed: dict[str, object], words: tuple[str, ...]
) -> None:
    before = contents(folder)
    assert_one_clear_line(run_here(folder, *arguments.split(), env=settings(folder, **changed)), *words)
    assert contents(folder) == before


@pytest.mark.parametrize("arguments", [(), ("db",), ("export",)])
def test_a_command_without_its_subcommand_shows_the_help(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run_here(tmp_path, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: ") and done.err.count("\n") > 5


@pytest.mark.parametrize("arguments", ["status", "crawl shops.csv", "db upgrade", "crawls", "export items"])
def test_database_of_a_newer_shopcrawl_is_left_alone(folder: Path, arguments: str) -> None:
    with sqlite3.connect(folder / "shopcrawl.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = contents(folder)
    done = run_here(folder, *arguments.split(), env=settings(folder))
    assert_one_clear_line(done, "version 9999", "newer shopcrawl")
    assert contents(folder) == before


def test_shared_database_without_tables_names_the_cure(postgres_server: PostgresServer, tmp_path: Path) -> None:
    postgres_server.start()
    url = postgres_server.create_database()
    shared = {"database_url": url, "redis_url": f"redis://127.0.0.1:{NOWHERE}/0"}
    (tmp_path / "shops.csv").write_text(SHOPS)
    for arguments in ("crawl shops.csv", "crawl shops.csv --no-follow", "status", "producer"):
        done = run_here(tmp_path, *arguments.split(), env=settings(tmp_path, allow_root="true", **shared))
        assert_one_clear_line(done, "shopcrawl db upgrade")
    done = run_here(tmp_path, "db", "upgrade", env=settings(tmp_path, **shared))
    assert (done.code, done.err) == (0, "") and "schema version" in done.out
    postgres_server.drop_database(url)


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ("--debug crawl missing.csv", {}),
        ("status --debug", {"database_url": f"postgresql://u:{TOKEN}@127.0.0.1:{NOWHERE}/d"}),
        ("--debug status", {"database_url": f"postgresql://u:{TOKEN}@h:{TOKEN}/d"}),
        ("--debug resume", {"redis_url": f"redis://:{TOKEN}@127.0.0.1:{NOWHERE}/0"}),
        ("--debug status", {"proxy": f"ftp://u:{TOKEN}@h"}),
    ],
)
def test_debug_shows_the_traceback_without_secrets(folder: Path, arguments: str, changed: dict[str, object]) -> None:
    done = run_here(folder, *arguments.split(), env=settings(folder, **changed))
    assert (done.code, done.out) == (2, "")
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("shopcrawl: ")
    assert TOKEN not in done.err


def test_unexpected_error_is_one_redacted_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"first line with {TOKEN}\nsecond line")

    monkeypatch.setattr("producer.cli.run.list_crawls", fail)
    done = run_here(folder, "crawls", env=settings(folder))
    assert (done.code, done.out) == (1, "")
    assert done.err == "shopcrawl: unexpected RuntimeError: first line with *** second line; --debug shows where\n"
