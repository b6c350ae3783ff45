"""The simulator as a command."""

import http.client
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.simulator.process import SimulatorProcess

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.simulator", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_it_announces_itself_serves_and_ends_on_sigterm() -> None:
    with SimulatorProcess(shops=3, seed=5, extra={"mine": 7}, token=["t"], switches={"total_factor": 2}) as sim:
        assert sim.ready == {"url": f"http://127.0.0.1:{sim.port}", "port": sim.port, "shops": 4}
        connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
        connection.request("GET", "/1688/shop/items?apiToken=t&member_id=mine")
        data = json.loads(connection.getresponse().read())["data"]
        connection.close()
        assert (data["total_count"], len(data["items"])) == ("14", 7)
        assert sim.script({"outcome": "417", "shop": "mine", "times": 1}) == [1]
        assert sim.calls()["total"] == 1
        assert len(sim.truth("mine")) == 7
        with pytest.raises(ValueError, match="unknown shop"):
            sim.truth("nobody")
        assert sim.stop() == 0


def test_it_ends_on_sigint_while_calls_are_in_flight() -> None:
    with SimulatorProcess(shops=0, extra={"a": 1}, latency=60) as sim:
        connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
        connection.request("GET", "/1688/shop/items?apiToken=t&member_id=a")
        psutil.Process(sim.pid).send_signal(signal.SIGINT)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            connection.getresponse()
        connection.close()
        assert sim.stop(asked=True) == 0


def test_it_ends_with_its_parent_even_if_that_is_killed() -> None:
    program = (
        "import time; from tests.simulator.process import SimulatorProcess as S; "
        "sim = S(shops=1); print(sim.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=10)


def test_the_shops_file_names_the_shops_that_are_served() -> None:
    lines = run("--print-shops", "--shops", "5", "--seed", "4", "--shop", "x=1").stdout.splitlines()
    with SimulatorProcess(shops=5, seed=4, extra={"x": 1}) as sim:
        assert lines == ["shop", *sim.control("GET", "shops")]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "gait=3"], "gait"),
        (["--set", "top_gait=3"], "gait"),
        (["--p417", "2"], "faults"),
        (["--shop", "nameless"], "KEY=ITEMS"),
        (["--top", "nameless"], "NICK=ITEMS"),
        (["--top", "a={}"], "items"),
    ],
)
def test_options_that_make_no_sense_end_with_the_reason_and_code_2(arguments: list[str], complaint: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert complaint in ended.stderr.splitlines()[-1]


def test_default_faults_heal_by_asking_again() -> None:
    with SimulatorProcess(
        shops=0, extra={"a": 400}, faults="default", switches={"delay_499": 0, "slow_seconds": 0}
    ) as sim:
        connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
        seen = set()
        for page in range(1, 21):
            for _ in range(20):
                try:
                    connection.request("GET", f"/1688/shop/items?apiToken=t&member_id=a&sort=time_up&page={page}")
                    answer = connection.getresponse()
                    items = json.loads(answer.read())["data"]["items"]
                except (ValueError, TypeError, KeyError, ConnectionError, http.client.HTTPException):
                    connection.close()
                    continue
                seen |= {item["item_id"] for item in items}
                break
        connection.close()
        assert len(seen) == 400
        assert seen == {row["item_id"] for row in sim.truth("a")}
