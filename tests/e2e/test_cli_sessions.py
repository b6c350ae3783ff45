"""Sessions at the command line: read from standard input, shown nowhere, and what waited for them goes on."""

import getpass
import json
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.settings import load_settings
from models.vault import KEY_FILE, Vault, new_key
from producer.sessions import _read_session
from tests.e2e.here import Done, run_here
from tests.session_source import session_source

__all__ = ["session_source"]
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("session_source")]

SESSION = "6100canary-of-a-session"


def shopcrawl(folder: Path, *arguments: str, stdin: str = "", code: int = 0, **env: object) -> Done:
    """Run a command that ends with this code, and see that it shows no session."""
    given = {"data_dir": folder / "data", "tmapi_tokens": "token"} | env
    done = run_here(folder, *arguments, env=given, stdin=stdin.encode())
    assert done.code == code, done
    if code:
        assert done.out == "" or arguments[1] == "rotate"
        assert done.err.startswith("shopcrawl: ") and done.err.count("\n") == 1
    assert "canary" not in done.out + done.err
    return done


def query(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "data" / "shopcrawl.db") as connection:
        rows = connection.execute(sql).fetchall()
    connection.close()
    return rows


def stored(folder: Path, **env: str) -> dict[str, str | None]:
    """The sessions in the database by shop, opened."""
    rows = query(folder, "SELECT key, sealed FROM session JOIN shop ON shop.id = shop_id ORDER BY key")
    vault = Vault(load_settings(data_dir=folder / "data", **{"secret_key": "", **env}))
    return dict(zip((row[0] for row in rows), vault.open([row[1] for row in rows]), strict=True))


def begin(folder: Path, content: str) -> dict[str, Any]:
    """Ask for a crawl of a shops file."""
    (folder / "shops.csv").write_text(content)
    done = shopcrawl(folder, "crawl", "shops.csv", "--source", "top", "--no-follow", "--json", "--quiet")
    return dict(json.loads(done.out))


def hold(folder: Path) -> None:
    """Hold every shop, as worker and producer do."""
    for table, state in {"page": "held", "shop_crawl": "held", "crawl": "waiting"}.items():
        query(folder, f"UPDATE {table} SET state = '{state}'")


def states(folder: Path) -> list[tuple[str, str, str]]:
    return query(
        folder,
        "SELECT crawl.state, shop_crawl.state, page.state FROM page JOIN shop_crawl ON shop_crawl.id = shop_crawl_id"
        " JOIN crawl ON crawl.id = crawl_id ORDER BY page.id",
    )


def test_a_session_is_set_from_standard_input_and_sealed(tmp_path: Path) -> None:
    done = shopcrawl(tmp_path, "session", "set", "b1", stdin=f"{SESSION}\n")
    assert (done.out, done.err) == ("sessions stored: 1; held shop crawls that go on: 0\n", "")
    assert stored(tmp_path) == {"b1": SESSION}
    shopcrawl(tmp_path, "session", "set", "b1", "--source", "top", stdin=f" {SESSION}2")
    assert stored(tmp_path) == {"b1": f"{SESSION}2"}
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(b"canary" in content for content in files)


def test_at_a_terminal_the_session_is_typed_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))

    def typed(prompt: str) -> str:
        prompts.append(prompt)
        return f"{SESSION} "

    monkeypatch.setattr(getpass, "getpass", typed)
    assert _read_session("b1") == SESSION
    assert prompts == ["session of b1: "]


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ("set b1", "", "the session is empty"),
        ("set b1", " \n", "the session is empty"),
        ("set b1", f"{SESSION} {SESSION}", "white space or control characters"),
        ("set b1", f"{SESSION}\n{SESSION}\n", "white space or control characters"),
        ("set b1", SESSION + "x" * 5000, "longer than 4096 bytes"),
        ("set b1 --source tmapi", SESSION, "source tmapi takes no sessions"),
        ("set b1 --source etsy", SESSION, "unknown source 'etsy'"),
        ("set b-1", SESSION, "letters and digits only"),
        ("import -", f"shop,session\nb1,{SESSION} x\n", "standard input, line 2: the session has white space"),
        ("import -", f"b1,{SESSION}\n", "standard input, line 1: bad header"),
        ("import nowhere.csv", "", "nowhere.csv: No such file"),
        ("forget b1", "", "no session of 'b1' (top) is stored"),
    ],
)
def test_what_cannot_be_a_session_is_refused_in_one_line(
    tmp_path: Path, arguments: str, stdin: str, words: str
) -> None:
    assert words in shopcrawl(tmp_path, "session", *arguments.split(), stdin=stdin, code=2).err


def test_a_list_tells_of_every_session_but_the_session(tmp_path: Path) -> None:
    assert "no session is stored" in shopcrawl(tmp_path, "session", "list").out
    assert json.loads(shopcrawl(tmp_path, "session", "list", "--json").out) == []
    imported = shopcrawl(tmp_path, "session", "import", "-", stdin=f"shop,session\nb1,{SESSION}\nb2,{SESSION}2\n")
    assert imported.out.startswith("sessions stored: 2;")
    query(tmp_path, "UPDATE session SET refused_at = set_at, reason = '27: [red]expired[/red]' WHERE shop_id = 1")
    first, second = json.loads(shopcrawl(tmp_path, "session", "list", "--json").out)
    assert (first["source"], first["shop"], first["state"], first["reason"]) == (
        "top",
        "b1",
        "refused",
        "27: [red]expired[/red]",
    )
    assert (second["shop"], second["state"], second["reason"]) == ("b2", "valid", None)
    table = shopcrawl(tmp_path, "session", "list").out
    assert "27: [red]expired[/red]" in table and "valid" in table
    assert shopcrawl(tmp_path, "session", "forget", "b1").out == "session of b1 forgotten\n"
    assert stored(tmp_path) == {"b2": f"{SESSION}2"}


def test_a_new_session_lets_held_crawls_go_on_and_says_how(tmp_path: Path) -> None:
    begin(tmp_path, "shop\nb1\nb2\n")
    hold(tmp_path)
    done = shopcrawl(tmp_path, "session", "set", "b2", stdin=SESSION)
    assert done.out == "sessions stored: 1; held shop crawls that go on: 1: run `shopcrawl resume`\n"
    assert states(tmp_path) == [("running", "held", "held"), ("running", "open", "ready")]


def test_sessions_in_the_shops_file_are_stored_and_are_no_part_of_the_crawl(tmp_path: Path) -> None:
    first = begin(tmp_path, f"shop,session\nb1,{SESSION}\nb2,\n")
    assert stored(tmp_path) == {"b1": SESSION}
    assert "canary" not in repr(query(tmp_path, "SELECT * FROM shop_crawl")) + repr(
        query(tmp_path, "SELECT * FROM crawl")
    )
    hold(tmp_path)
    again = begin(tmp_path, f"shop,session\nb1,\nb2,{SESSION}2\n")
    assert (again["crawl_id"], again["resumed"]) == (first["crawl_id"], True), "the same crawl, now with a session more"
    assert stored(tmp_path) == {"b1": SESSION, "b2": f"{SESSION}2"}
    assert states(tmp_path) == [("running", "held", "held"), ("running", "open", "ready")]


def test_the_key_file_rotates_and_every_session_stays_readable(tmp_path: Path) -> None:
    shopcrawl(tmp_path, "session", "import", "-", stdin=f"shop,session\nb1,{SESSION}\nb2,x\n")
    key_file = tmp_path / "data" / KEY_FILE
    before = key_file.read_text()
    assert shopcrawl(tmp_path, "session", "rotate").out == "sealed with the newest key: 2\n"
    assert key_file.read_text() != before
    assert stored(tmp_path) == {"b1": SESSION, "b2": "x"}


def test_keys_from_the_settings_rotate_too_and_a_lost_one_is_told(tmp_path: Path) -> None:
    old = shopcrawl(tmp_path, "session", "key").out.strip()
    new = new_key()
    assert len({old, new}) == 2
    shopcrawl(tmp_path, "session", "set", "b1", stdin=SESSION, secret_key=old)
    lost = shopcrawl(tmp_path, "session", "rotate", secret_key=new, code=2)
    assert "left out: 1, sealed with a key that SHOPCRAWL_SECRET_KEY" in lost.err
    assert old not in lost.err and new not in lost.err
    assert shopcrawl(tmp_path, "session", "rotate", secret_key=f"{new},{old}").out == "sealed with the newest key: 1\n"
    assert stored(tmp_path, secret_key=new) == {"b1": SESSION}
    assert not (tmp_path / "data" / KEY_FILE).exists()


def test_a_setting_that_is_no_key_stops_every_command_that_would_use_it(tmp_path: Path) -> None:
    (tmp_path / "shops.csv").write_text("shop\nb1\n")
    for command in ("session set b1", "session rotate", "crawl shops.csv --source top"):
        done = shopcrawl(tmp_path, *command.split(), stdin=SESSION, secret_key="canary", code=2)
        assert "SHOPCRAWL_SECRET_KEY holds no Fernet key: `shopcrawl session key` makes one" in done.err
