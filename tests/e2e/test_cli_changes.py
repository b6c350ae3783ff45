"""The changes and the webhooks at the command line."""

import asyncio
import csv
import io
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from models.changes import Change
from models.settings import Settings, load_settings
from models.subscriptions import resume_subscription
from models.tables import outbox
from models.vault import Vault, new_key
from tests.changes import SECRET, ids, keep, make_shops, name_item, subscribe
from tests.e2e.fleet import ROOT, shopcrawl
from tests.e2e.here import Done, run_here
from tests.ledger import engine_for, rows
from tests.receiver import Message, Receiver, Reply, receiving
from tests.servers import spawn

pytestmark = pytest.mark.e2e

KEY = new_key()
NOW = datetime.now(UTC).replace(microsecond=500_000)


class Cli:
    """Commands on an SQLite file whose changes are known; none of their outputs shows a secret."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.env: dict[str, object] = {"data_dir": folder / "data", "database_url": url, "secret_key": KEY}

    def run(self, *arguments: str, code: int = 0, stdin: str = "", **env: object) -> Done:
        done = run_here(self.folder, *arguments, env=self.env | env, stdin=stdin.encode())
        assert done.code == code, done
        assert SECRET not in done.out + done.err and KEY not in done.out + done.err
        if code:
            assert done.out == "" and done.err.startswith("shopcrawl: ") and done.err.count("\n") == 1
        return done

    @property
    def settings(self) -> Settings:
        return load_settings(**self.env)

    def fill(self) -> None:
        """Two shops with changes of several kinds, the newest an hour old, one of them two days old."""

        async def fill() -> None:
            async with engine_for(self.url) as engine:
                jane, joe = await make_shops(engine, "jane", "joe")
                await name_item(engine, jane, "612", "=茶 cup")
                await keep(
                    engine,
                    change(joe, "old", 48, "new", after={"title": "pot", "price": "3"}),
                    change(jane, "612", 3, "price", {"price": "12.5"}, {"price": "11"}),
                    change(jane, "612", 2, "stock", {"stock": 3}, {"stock": 0}),
                    change(joe, "7", 1, "gone"),
                )

        asyncio.run(fill())


def change(shop_id: int, item_id: str, hours: float, kind: str, before: Any = None, after: Any = None) -> Change:
    return Change(shop_id, item_id, kind, NOW - timedelta(hours=hours), 1, before, after)


@pytest.fixture
def cli(tmp_path: Path, sqlite_url: str) -> Cli:
    cli = Cli(tmp_path, sqlite_url)
    cli.fill()
    return cli


def test_changes_of_a_day_stand_in_a_table_the_newest_last(cli: Cli) -> None:
    done = cli.run("changes")
    lines = [line.split() for line in done.out.splitlines() if "jane" in line or "joe" in line]
    assert [line[4] for line in lines] == ["price", "stock", "gone"]
    assert "12.5 → 11 (-12.0 %)" in done.out and "=茶 cup" in done.out and done.err == ""


def test_a_table_is_cut_and_says_how_much(cli: Cli) -> None:
    done = cli.run("changes", "--since", "7d", "--limit", "1")
    assert "gone" in done.out and "price" not in done.out and "and 3 before these" in done.out


def test_changes_are_narrowed_by_time_shop_and_kind(cli: Cli) -> None:
    def got(*arguments: str) -> list[str]:
        lines = cli.run("changes", "--format", "jsonl", *arguments).out.splitlines()
        return [json.loads(line)["kind"] for line in lines]

    assert got() == ["price", "stock", "gone"]
    assert got("--since", "7d") == ["new", "price", "stock", "gone"]
    assert got("--since", (NOW - timedelta(hours=2)).isoformat()) == ["stock", "gone"]
    assert got("--shop", "jane") == ["price", "stock"]
    assert got("--shop", "jane", "--shop", "joe", "--kind", "gone,stock") == ["stock", "gone"]
    assert got("--kind", "price", "--kind", "gone") == ["price", "gone"]
    assert got("--limit", "2") == ["stock", "gone"]


def test_each_format_holds_the_same_rows(cli: Cli) -> None:
    lines = [json.loads(line) for line in cli.run("changes", "--format", "jsonl").out.splitlines()]
    price = lines[0]
    assert (price["source"], price["shop"], price["item_id"], price["title"]) == ("tmapi", "jane", "612", "=茶 cup")
    assert (price["before"], price["after"]) == ({"price": "12.5"}, {"price": "11"})
    assert price["at"] == (NOW - timedelta(hours=3)).isoformat().replace("+00:00", "Z")
    cells = list(csv.DictReader(io.StringIO(cli.run("changes", "--format", "csv").out)))
    assert [row["id"] for row in cells] == [str(line["id"]) for line in lines]
    assert cells[0]["title"] == "'=茶 cup" and json.loads(cells[0]["after"]) == {"price": "11"}
    done = cli.run("changes", "--format", "parquet", "-o", "changes.parquet")
    assert (done.out, done.err) == ("", "3 changes written to changes.parquet\n")
    table = pyarrow.parquet.read_table(cli.folder / "changes.parquet").to_pylist()
    assert [row["id"] for row in table] == [line["id"] for line in lines]
    assert table[0]["at"] == NOW - timedelta(hours=3) and json.loads(table[0]["after"]) == {"price": "11"}


@pytest.mark.parametrize("format", ["table", "jsonl"])
def test_no_change_is_said_in_one_line_and_is_no_failure(cli: Cli, format: str) -> None:
    done = cli.run("changes", "--kind", "back,unit", "--since", "1h", "--format", format)
    assert (done.out, done.err) == ("", "no change of kind back or unit since 1h\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--kind", "prices"], "unknown kind 'prices'; kinds: new"),
        (["--shop", "nobody"], "unknown shop: 'nobody'"),
        (["--since", "yesterday"], "'yesterday' is no time"),
        (["-o", "x.txt"], "a table is for the terminal"),
        (["--format", "csv", "-o", "no/such/folder"], "No such file"),
    ],
)
def test_a_wrong_question_is_answered_with_what_is_wrong(cli: Cli, arguments: list[str], complaint: str) -> None:
    assert complaint in cli.run("changes", *arguments, code=2).err
    assert not (cli.folder / "x.txt").exists()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def test_a_webhook_is_added_tested_used_paused_and_removed(cli: Cli, receiver: Receiver) -> None:
    added = cli.run("webhook", "add", receiver.url, "--allow-http", "--secret", "-", stdin=f"{SECRET}\n")
    assert added.out == "webhook 1 gets price, new, gone: `shopcrawl webhook test 1` tries it\n"
    tested = cli.run("webhook", "test", "1")
    assert tested.out == "webhook 1 took the message: HTTP 200\n"
    [ping] = receiver.messages
    assert ping.content == {"subscription": 1, "deliveries": []}
    again = cli.run("webhook", "redeliver", "1", "--since", "24h")
    assert again.out == "changes that wait again: 2\n"
    cli.run("webhook", "pause", "1")
    assert cli.run("webhook", "deliver").out == "nothing waits\n"
    assert len(receiver.messages) == 1
    cli.run("webhook", "resume", "1")
    assert cli.run("webhook", "deliver").out == "nothing waits\n"
    kinds = [each["kind"] for each in receiver.messages[1].content["deliveries"]]
    assert kinds == ["price", "gone"]
    [line] = json.loads(cli.run("webhook", "list", "--json").out)
    assert (line["delivered"], line["waiting"], line["state"], line["cursor"]) == (2, 0, "active", receiver.ids[-1])
    assert receiver.url in cli.run("webhook", "list").out
    cli.run("webhook", "remove", "1")
    assert "no webhook" in cli.run("webhook", "list").out
    for command in (["remove"], ["pause"], ["resume"], ["test"], ["redeliver", "--since", "1d"]):
        assert "there is no webhook 1" in cli.run("webhook", *command, "1", code=2).err


def test_a_secret_that_is_made_is_shown_once_and_signs(cli: Cli, receiver: Receiver) -> None:
    added = cli.run("webhook", "add", receiver.url, "--allow-http", "--kind", "stock", "--shop", "jane")
    first, second = added.out.splitlines()
    receiver.secret = second.rpartition(" ")[2]
    assert first.startswith("webhook 1 gets stock:") and receiver.secret.startswith("whsec_")
    cli.run("webhook", "redeliver", "1", "--since", "24h")
    cli.run("webhook", "deliver")
    assert [each["kind"] for each in receiver.messages[0].content["deliveries"]] == ["stock"]
    shown = [cli.run("webhook", *words) for words in (["list"], ["list", "--json"], ["test", "1"])]
    assert not any(receiver.secret in done.out + done.err for done in shown)
    files = [path.read_bytes() for path in cli.folder.rglob("*") if path.is_file()]
    assert files and not any(receiver.secret.encode() in content for content in files)


def test_what_cannot_be_delivered_is_said_and_kept(cli: Cli) -> None:
    with receiving(lambda message, number: Reply(500, f"no: {message.secret}".encode())) as receiver:
        cli.run("webhook", "add", receiver.url, "--allow-http", "--secret", SECRET)
        assert "did not take the message: HTTP 500: no: ***" in cli.run("webhook", "test", "1", code=2).err
        cli.run("webhook", "redeliver", "1", "--since", "24h")
        assert "2 changes still wait" in cli.run("webhook", "deliver", code=2).err
    [line] = json.loads(cli.run("webhook", "list", "--json").out)
    assert (line["failures"], line["waiting"], line["reason"]) == (1, 2, "HTTP 500: no: ***")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["http://127.0.0.1/x"], "--allow-http permits it"),
        (["http://example.com/x", "--allow-http"], "must start with https://"),
        (["https://example.com", "--secret", "cnry-short"], "16 to 128"),
        (["https://example.com", "--kind", "all"], "unknown kind 'all'"),
        (["https://example.com", "--shop", "nobody"], "unknown shop"),
        (["https://example.com", "--shop", "jane", "--source", "top"], "jane is in another source"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused(cli: Cli, arguments: list[str], complaint: str) -> None:
    done = cli.run("webhook", "add", *arguments, code=2)
    assert complaint in done.err and "cnry" not in done.err
    assert json.loads(cli.run("webhook", "list", "--json").out) == []


def test_a_rotated_key_keeps_webhooks_working(cli: Cli, receiver: Receiver) -> None:
    newest = new_key()
    cli.run("webhook", "add", receiver.url, "--allow-http", "--secret", SECRET)
    assert "sealed with the newest key: 1" in cli.run("session", "rotate", secret_key=f"{newest},{KEY}").out
    assert "HTTP 200" in cli.run("webhook", "test", "1", secret_key=newest).out
    assert "sealed with a key that" in cli.run("webhook", "test", "1", code=2).err


async def test_killed_again_and_again_a_delivering_process_loses_nothing(tmp_path: Path, postgres_url: str) -> None:
    chance, running = random.Random(4), list[subprocess.Popen[bytes]]()
    kills = ["after", "before"]

    def answer(message: Message, number: int) -> Reply | int:
        kill = kills.pop() if kills and (number % 2 or chance.random() < 0.5) else None

        def strike() -> None:
            running[-1].kill()

        if kill == "before":
            strike()
        return Reply(200, then=strike) if kill == "after" else 200

    settings = {"data_dir": tmp_path, "database_url": postgres_url, "secret_key": KEY}
    env = [f"SHOPCRAWL_{name.upper()}={value}" for name, value in settings.items()]
    async with engine_for(postgres_url) as engine:
        with receiving(answer) as receiver:
            [shop_id] = await make_shops(engine, "jane")
            await subscribe(engine, Vault(load_settings(**settings)), receiver.url)
            await keep(engine, *(change(shop_id, f"i{n}", n / 60, "price") for n in range(950)))
            ended = -signal.SIGKILL
            killed = 0
            while ended == -signal.SIGKILL:
                async with engine.begin() as connection:
                    await resume_subscription(connection, 1, datetime.now(UTC) - timedelta(seconds=5))
                command = ["env", *env, *shopcrawl("webhook", "deliver")]
                running.append(spawn(command, cwd=ROOT, log=sys.stderr.fileno(), death_signal=signal.SIGKILL))
                ended = await asyncio.to_thread(running[-1].wait, 60)
                killed += ended == -signal.SIGKILL
        assert ended == 0 and killed == 2
        assert await rows(engine, outbox) == []
        assert list(dict.fromkeys(receiver.ids)) == await ids(engine), "each came, first in order"
        assert len(receiver.ids) > 950, "and some came twice"
