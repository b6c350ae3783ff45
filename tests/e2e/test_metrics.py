"""Prometheus reads from producer and worker what the ledger and the simulator know."""

import errno
import re
import socket
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models import metrics
from models.settings import load_settings
from models.tables import page_body
from tests.e2e.fleet import Fleet, until
from tests.servers import free_port
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e
Samples = dict[str, float]
CONCURRENCY, OUT = 3, 8
LINE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """Few and slow shops, so that pages queue up; errors that heal, one shop that is refused, and one so slow that the
    producer, which looks once a second, sees its calls.
    """
    faults = {"417": 0.1, "500": 0.1}
    with SimulatorProcess(shops=12, seed=5, items_max=60, latency=0.25, switches={"faults": faults}) as running:
        refused, slow, *_ = running.control("GET", "shops")
        running.script({"outcome": "422", "shop": refused}, {"set": {"latency": 1.5}, "shop": slow})
        yield running


def scrape(port: int) -> Samples:
    """Every sample of a Prometheus page by name and labels; none while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {name: float(value) for name, value in LINE.findall(text)}


def by_label(samples: Samples, name: str, label: str) -> Counter[str]:
    """The values of one series by one of its labels."""
    found = {re.search(rf'{label}="([^"]*)"', key): value for key, value in samples.items() if key.startswith(name)}
    return Counter({match[1]: int(value) for match, value in found.items() if match})


class Highest:
    """The highest value that each sample ever had."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports
        self.values: Samples = {}

    def look(self) -> None:
        """Scrape all ports."""
        for port in self._ports:
            for name, value in scrape(port).items():
                self.values[name] = max(value, self.values.get(name, value))

    def of(self, start: str) -> float:
        """The highest value of any sample whose name starts like this."""
        return max(value for name, value in self.values.items() if name.startswith(start))


async def test_series_have_the_values_of_ledger_and_simulator(tmp_path: Path, simulator: SimulatorProcess) -> None:
    producer, worker = ports = free_port_pair()
    options: dict[str, Any] = {"metrics_port": producer, "concurrency": CONCURRENCY, "in_flight": OUT}
    with Fleet(tmp_path, simulator, **options) as fleet:
        crawl_id = fleet.submit()
        fleet.background("up", "up")
        highest = Highest(*ports)

        async def finished() -> bool:
            highest.look()
            return await fleet.is_finished(crawl_id)

        await until(finished, what="the end of the crawl")
        assert "shopcrawl_workers" in scrape(producer), "the producer has the first port, its workers those after it"
        await assert_worker_counted(scrape(worker), fleet)

        async def empty() -> bool:
            return idle(scrape(producer), scrape(worker))

        await until(empty, what="gauges at rest")
    assert highest.of('shopcrawl_queue_depth{queue="pages"}') >= OUT - 2 * CONCURRENCY
    assert 0 < highest.of("shopcrawl_pages_in_flight") <= 2 * CONCURRENCY
    assert 0 < highest.of("shopcrawl_pages_sent") <= OUT
    assert 0 < highest.of("shopcrawl_oldest_due_seconds") < 120
    assert highest.of("shopcrawl_workers") == 1
    assert highest.of("shopcrawl_limit{") >= 1
    assert highest.of("shopcrawl_permits_in_use") >= 1


async def assert_worker_counted(told: Samples, fleet: Fleet) -> None:
    """Counters of the only worker against the ledger and the simulator."""
    truth, pages = fleet.simulator.calls(), await fleet.pages()
    assert by_label(told, "shopcrawl_pages_total", "state") >= Counter(done=pages["done"], refused=pages["refused"])
    assert pages["refused"] == 1
    assert by_label(told, "shopcrawl_calls_total", "outcome") == await fleet.calls()
    assert told['shopcrawl_calls_total{outcome="200",source="tmapi"}'] == truth["outcomes"]["200"]
    assert told['shopcrawl_call_seconds_count{source="tmapi"}'] == truth["total"]
    assert told['shopcrawl_call_seconds_bucket{le="0.1",source="tmapi"}'] == 0
    assert told['shopcrawl_call_seconds_bucket{le="+Inf",source="tmapi"}'] == truth["total"]
    assert told['shopcrawl_call_seconds_sum{source="tmapi"}'] > 0.2 * truth["outcomes"]["200"]
    assert told['shopcrawl_permit_wait_seconds_count{source="tmapi"}'] == truth["total"]
    assert by_label(told, "shopcrawl_items_total", "kind") == Counter(new=len(await fleet.stored()))
    (archived,) = await fleet.read(sa.select(sa.func.sum(sa.func.length(page_body.c.body))))
    assert told['shopcrawl_archive_bytes_total{source="tmapi"}'] == archived[0]


def idle(producer: Samples, worker: Samples) -> bool:
    """Whether nothing is queued, sent, due or held any more."""
    gauges = ("shopcrawl_queue_depth", "shopcrawl_pages_sent", "shopcrawl_oldest_due", "shopcrawl_permits_in_use")
    values = [value for name, value in producer.items() if name.startswith(gauges)]
    return len(values) == 5 and not any(values) and worker["shopcrawl_pages_in_flight"] == 0


def free_port_pair() -> tuple[int, int]:
    """Two ports in a row that nobody listens on."""
    while True:
        first = free_port()
        with socket.socket() as probe:
            if first < 65_000 and probe.connect_ex(("127.0.0.1", first + 1)) != 0:
                return first, first + 1


@pytest.mark.parametrize(("port", "expected"), [(0, False), (1, True)])
def test_metrics_are_off_unless_a_port_is_set(port: int, expected: bool) -> None:
    first = free_port() * port
    with metrics.serving(load_settings(metrics_port=first)):
        assert bool(scrape(first)) is expected
    assert scrape(first) == {}


def test_processes_of_one_machine_take_ports_in_a_row() -> None:
    first, second = free_port_pair()
    settings = load_settings(metrics_port=first)
    with metrics.serving(settings), metrics.serving(settings):
        assert scrape(first) and scrape(second)


def test_crawl_goes_on_without_metrics(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr("models.metrics.start_http_server", refuse)
    with metrics.serving(load_settings(metrics_port=9)):
        assert "no metrics: cannot listen on 127.0.0.1 port 9: Cannot assign requested address" in caplog.text
