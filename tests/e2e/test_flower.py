"""Flower shows operators the fleet and lets them act, shows strangers nothing, and tells nobody a secret."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio
import sqlalchemy as sa

from models.tables import crawl
from tests.e2e.fleet import TOKEN, Fleet
from tests.e2e.flower import ASKED, Flower, links
from tests.servers import RedisServer, free_port, wait_until
from tests.simulator.process import SimulatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("flower")]
SHOPS = 8
CONCURRENCY = 10
PASSWORD = "canary-flower-password"
REDIS_PASSWORD = "canary-redis-password"
OPEN_PATHS = ("/healthcheck", "/metrics", "/static/css/bootstrap.min.css")
CLOSED_PATHS = ("/", "/workers", "/tasks", "/broker", "/task/x", "/worker/x", "/tasks/datatable")
API_PATHS = ("/api/workers", "/api/tasks", "/api/task/types", "/api/queues/length")


class Watched:
    """A fleet that has crawled while Flower was watching."""

    def __init__(self, fleet: Fleet, simulator: SimulatorProcess, flower: Flower, worker: str) -> None:
        self.fleet, self.simulator, self.flower, self.worker = fleet, simulator, flower, worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> AsyncIterator[Watched]:
    """One worker, a producer and Flower with a password, on a Redis with a password; a crawl has ended."""
    folder, port = tmp_path_factory.mktemp("flower"), free_port()
    database = shutil.copy(sqlite_template, folder / "shopcrawl.db")
    with (
        RedisServer(tmp_path_factory.mktemp("redis"), password=REDIS_PASSWORD) as redis,
        SimulatorProcess(shops=SHOPS, items_max=100, seed=5, token=TOKEN) as simulator,
        Fleet(
            folder, simulator, database_url=f"sqlite:///{database}", redis_url=redis.url, concurrency=CONCURRENCY,
            flower_port=port, flower_user="operator", flower_password=PASSWORD,
        ) as fleet,
    ):  # fmt: skip
        flower = Flower(port, "operator", PASSWORD)
        fleet.worker()
        fleet.background("flower", "flower")
        wait_until(flower.is_up, what="Flower")
        wait_until(lambda: len(flower.workers()) == 1, what="a worker in Flower")
        wait_until(lambda: ASKED in fleet.log("worker-1"), what="task events", within=20)
        fleet.producer()
        crawl_id = fleet.submit()
        await fleet.until_finished(crawl_id)
        yield Watched(fleet, simulator, flower, next(iter(flower.workers())))


async def test_tasks_are_listed_with_readable_arguments(watched: Watched) -> None:
    pages = (await watched.fleet.pages())["done"]
    flower = watched.flower
    wait_until(lambda: sum(task["state"] == "SUCCESS" for task in flower.tasks().values()) >= pages, within=20)
    tasks = flower.tasks()
    assert {task["name"] for task in tasks.values()} == {"crawl_page"}
    shop = next(iter(watched.simulator.control("GET", "shops")))
    shown = {task["kwargs"]: task_id for task_id, task in tasks.items()}
    assert f"tmapi {shop} page 1 (crawl 1, sending 1)" in shown
    detail = flower.ask(f"/task/{shown[f'tmapi {shop} page 1 (crawl 1, sending 1)']}")
    assert detail.status == 200
    assert f"tmapi {shop} page 1 (crawl 1, sending 1)" in detail.text


async def test_a_pool_can_be_grown_and_shrunk(watched: Watched) -> None:
    flower, worker = watched.flower, watched.worker
    assert flower.pool_size(worker) == CONCURRENCY
    assert flower.ask(f"/api/worker/pool/grow/{quote(worker)}?n=5", "POST").status == 200
    wait_until(lambda: flower.pool_size(worker) == CONCURRENCY + 5, within=20)
    assert flower.ask(f"/api/worker/pool/shrink/{quote(worker)}?n=5", "POST").status == 200
    wait_until(lambda: flower.pool_size(worker) == CONCURRENCY, within=20)


@pytest.mark.parametrize("call", ["async-apply", "send-task"])
async def test_a_recrawl_can_be_asked_for(watched: Watched, call: str) -> None:
    crawls = sa.select(sa.func.max(crawl.c.id))
    newest = (await watched.fleet.read(crawls))[0][0]
    calls = watched.simulator.calls()["total"]
    shop = next(iter(watched.simulator.control("GET", "shops")))
    asked = watched.flower.ask(f"/api/task/{call}/recrawl_shops", "POST", {"args": [[shop]]})
    assert asked.json()["task-id"]
    await watched.fleet.until_finished(newest + 1)
    assert watched.simulator.calls()["total"] > calls


async def test_no_page_and_no_answer_tells_a_secret(watched: Watched) -> None:
    flower = watched.flower
    task = next(iter(flower.tasks()))
    todo = [*OPEN_PATHS, *CLOSED_PATHS, *API_PATHS, f"/task/{task}", f"/worker/{quote(watched.worker)}", "/nothing"]
    todo += [f"/api/task/info/{task}", f"/api/task/result/{task}", "/api/tasks?limit=x", "/tasks/datatable?draw=x"]
    seen: dict[str, str] = {}
    while todo:
        path = todo.pop()
        if path not in seen and not path.startswith("/static"):
            seen[path] = flower.ask(path).text
            todo += links(seen[path])
    assert len(seen) > 15
    told = {path for path, text in seen.items() for secret in (TOKEN, PASSWORD, REDIS_PASSWORD) if secret in text}
    assert told == set()
    assert not any(secret in watched.fleet.log("flower") for secret in (TOKEN, PASSWORD, REDIS_PASSWORD))


@pytest.mark.parametrize("user", ["", "operator"])
@pytest.mark.parametrize("path", [*CLOSED_PATHS, *API_PATHS])
async def test_a_stranger_sees_no_page(watched: Watched, path: str, user: str) -> None:
    assert Flower(watched.flower.port, user, "wrong").ask(path).status == 401


async def test_a_stranger_changes_nothing(watched: Watched) -> None:
    stranger = Flower(watched.flower.port)
    worker = quote(watched.worker)
    for path in (f"/api/worker/shutdown/{worker}", f"/api/worker/pool/shrink/{worker}?n=9", "/api/task/revoke/x"):
        assert stranger.ask(path, "POST").status == 401
    assert stranger.ask("/api/task/send-task/recrawl_shops", "POST", {"args": [["x"]]}).status == 401
    assert watched.flower.pool_size(watched.worker) == CONCURRENCY


async def test_another_site_cannot_act_through_an_operators_browser(watched: Watched) -> None:
    path = f"/api/worker/pool/grow/{quote(watched.worker)}?n=5"
    assert watched.flower.ask(path, "POST", Origin="http://evil.example").status == 403
    assert watched.flower.ask(path, "POST", **{"Sec-Fetch-Site": "cross-site"}).status == 403


async def test_without_a_password_it_shows_pages_on_loopback_and_lets_nobody_act(
    watched: Watched, tmp_path: Path, redis_url: str
) -> None:
    port = free_port()
    with Fleet(tmp_path, watched.simulator, redis_url=redis_url, flower_port=port) as fleet:
        fleet.background("flower", "flower")
        flower = Flower(port)
        wait_until(flower.is_up, what="Flower")
        assert flower.ask("/workers").status == 200
        assert flower.ask("/api/tasks").status == 401
        assert flower.ask("/api/task/send-task/recrawl_shops", "POST", {"args": [["x"]]}).status == 401


async def test_off_loopback_without_a_password_it_does_not_start(watched: Watched, tmp_path: Path) -> None:
    with Fleet(tmp_path, watched.simulator, redis_url="redis://127.0.0.1:1/0", flower_host="0.0.0.0") as fleet:
        refused = fleet.run("flower")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "SHOPCRAWL_FLOWER_PASSWORD" in refused.stderr
