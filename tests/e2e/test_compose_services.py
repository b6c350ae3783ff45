"""The services of docker-compose.yml, started as that file says, crawl together and keep strangers out."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from tests.e2e.flower import ASKED, Flower
from tests.e2e.stack import SHOPS, TOKEN, Stack
from tests.servers import PostgresServer, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("compose")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole fleet in the order of `depends_on`, each service healthy by its own health check."""
    folder = tmp_path_factory.mktemp("compose")
    with (
        PostgresServer(tmp_path_factory.mktemp("compose-postgres")) as postgres,
        Stack(folder / "s", postgres) as stack,
    ):
        stack.create_database()
        stack.start("redis")
        migrated = stack.run("migrate")
        assert migrated.returncode == 0, migrated.stderr
        stack.start("simulator", "--shops", str(SHOPS))
        for name in ("producer", "worker-1", "flower"):
            stack.start(name)
        yield stack


@pytest.fixture(scope="module")
def crawled(stack: Stack) -> Stack:
    """The fleet after the demo's crawl, of which Flower has seen the tasks."""
    log = stack.folder / "worker-1.log"
    wait_until(lambda: ASKED in log.read_text(errors="replace"), what="task events")
    done = stack.run("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    return stack


def test_the_demo_crawls_every_shop_to_its_end(crawled: Stack) -> None:
    exported = crawled.run("producer", "shopcrawl", "export", "items")
    assert exported.returncode == 0, exported.stderr
    stored = [json.loads(line) for line in exported.stdout.splitlines()]
    with urllib.request.urlopen(f"http://127.0.0.1:{crawled.port['simulator']}/_sim/truth") as answer:
        truth = [json.loads(line) for line in answer]
    assert len(truth) > SHOPS
    assert {(row["shop"], row["item_id"]) for row in stored} == {(row["shop"], row["item_id"]) for row in truth}
    assert len(stored) == len(truth)
    status = json.loads(crawled.run("producer", "shopcrawl", "status", "--json").stdout)
    assert status["verdicts"]["complete"] == SHOPS


def test_postgresql_is_healthy_and_knows_shopcrawl_as_an_ordinary_role_with_a_password(stack: Stack) -> None:
    assert stack.is_healthy("postgres")

    async def role(password: str) -> tuple[str, bool]:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=stack.port["postgres"], user="shopcrawl", password=password, database="shopcrawl"
        )
        try:
            return tuple(
                await connection.fetchrow("SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user")
            )
        finally:
            await connection.close()

    assert asyncio.run(role(stack.secret("postgres_password"))) == ("shopcrawl", False)
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(role("wrong"))


@pytest.mark.parametrize("command", [("GET", "x"), ("LPUSH", "pages", "{}"), ("INFO",), ("CONFIG", "GET", "*")])
def test_redis_refuses_strangers_and_lets_its_health_user_only_ping(stack: Stack, command: tuple[str, ...]) -> None:
    with redis.Redis(port=stack.port["redis"]) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.execute_command(*command)
    with redis.Redis(port=stack.port["redis"], username="health", password="none") as health:
        assert health.execute_command("PING") is True
        with pytest.raises(redis.ResponseError, match="no permissions"):
            health.execute_command(*command)


@pytest.mark.parametrize("command", ["FLUSHALL", "SHUTDOWN NOSAVE", "CONFIG SET maxmemory 1", "KEYS *"])
def test_the_fleet_itself_cannot_harm_redis(stack: Stack, command: str) -> None:
    with redis.Redis.from_url(stack.mapped("worker", stack.secret("shopcrawl_redis_url"))) as client:
        with pytest.raises(redis.ResponseError, match="no permissions"):
            client.execute_command(*command.split())
        settings = client.info()
    assert settings["maxmemory_policy"] == "noeviction"
    assert settings["aof_enabled"] == 1


def test_flower_asks_for_the_password(crawled: Stack) -> None:
    port = crawled.port["flower"]
    assert Flower(port).ask("/api/tasks").status == 401
    tasks = Flower(port, "operator", crawled.secret("shopcrawl_flower_password")).tasks()
    assert {task["name"] for task in tasks.values()} == {"crawl_page"}


def test_doctor_finds_nothing_wrong_in_a_container(stack: Stack) -> None:
    checked = stack.run("producer", "shopcrawl", "doctor")
    assert "redis persistence" in checked.stdout
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_one_more_worker_can_be_added_and_a_stopped_one_leaves_orderly(crawled: Stack) -> None:
    crawled.start("worker-2")
    assert crawled.stop("worker-2") == 0


def test_no_secret_stands_in_a_log_or_on_a_command_line(crawled: Stack) -> None:
    names = ("redis_password", "postgres_password", "shopcrawl_flower_password")
    secrets = [TOKEN, *(crawled.secret(name) for name in names)]
    running = [pid for pid in crawled.pids.values() if psutil.pid_exists(pid)]
    commands = [" ".join(psutil.Process(pid).cmdline()) for pid in running]
    logs = [path.read_text(errors="replace") for path in Path(crawled.folder).rglob("*.log")]
    assert len(commands) >= 5
    assert any("worker ready" in log for log in logs)
    assert [secret for secret in secrets if any(secret in text for text in [*commands, *logs])] == []
