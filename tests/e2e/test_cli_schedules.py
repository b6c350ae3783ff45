"""Schedules and modes on the command line: what is asked for is kept, and what makes no sense is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.here import Done, run_here
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

TOKEN = "schedule-token"
Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, stdin: bytes = b"") -> Done:
        return run_here(tmp_path, *arguments, env={"data_dir": tmp_path / "data", "tmapi_tokens": TOKEN}, stdin=stdin)

    return run


def test_schedules_are_added_listed_previewed_disabled_and_removed(run: Run) -> None:
    assert "no schedule yet" in run("schedule", "list").out
    assert "schedule 1 added" in run("schedule", "add", "--all", "--every", "6h").out
    words = ["--cron", "0 3 * * *", "--timezone", "Asia/Shanghai", "--mode", "new"]
    assert run("schedule", "add", "--shop", "one", "--shop", "two", *words).out.count(" added") == 2
    assert run("schedule", "add", "--source", "tmapi", "--adaptive", "--longest", "3d").code == 0
    assert run("schedule", "add", "--all", "--budget", "1000").code == 0
    assert run("schedule", "disable", "2").out == "schedule 2 disabled\n"
    assert run("schedule", "remove", "3").out == "schedule 3 removed\n"
    lines = {line["id"]: line for line in json.loads(run("schedule", "list", "--json").out)}
    assert [line["kind"] for line in lines.values()] == ["interval", "cron", "adaptive", "budgeted"]
    assert lines[1]["every"] == 21_600
    assert (lines[2]["shop"], lines[2]["mode"], lines[2]["timezone"]) == ("one", "new", "Asia/Shanghai")
    assert (lines[2]["enabled"], lines[1]["enabled"]) == (False, True)
    assert lines[2]["next_at"][11:16] == "19:00"
    assert (lines[4]["source"], lines[4]["shortest"], lines[4]["longest"]) == ("tmapi", 3_600, 259_200)
    assert lines[5]["daily_calls"] == 1_000
    shown = run("schedule", "list").out
    assert all(words in shown for words in ("every 6h", "tmapi one", "adaptive, 1h to 3d", "1,000 calls a day"))
    found = json.loads(run("schedule", "preview", "2", "--json").out)
    assert (found["starts"], found["examples"], len(found["times"])) == (1, [["tmapi", "one"]], 5)
    assert "would start: 0 shops" in run("schedule", "preview", "5").out
    assert run("schedule", "enable", "2").out == "schedule 2 enabled\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["add", "--every", "6h"], "say which shops"),
        (["add", "--all", "--shop", "a", "--every", "6h"], "say which shops"),
        (["add", "--all"], "say when"),
        (["add", "--all", "--every", "6h", "--cron", "0 3 * * *"], "say when"),
        (["add", "--all", "--every", "30s"], "1m or more"),
        (["add", "--all", "--every", "6h", "--timezone", "UTC"], "--timezone goes with --cron"),
        (["add", "--all", "--every", "6h", "--shortest", "1h"], "--shortest and --longest go with"),
        (["add", "--all", "--adaptive", "--shortest", "2d", "--longest", "1d"], "--longest no shorter"),
        (["add", "--all", "--adaptive", "--mode", "new"], "leave out --mode"),
        (["add", "--shop", "a", "--budget", "10"], "--budget chooses among many shops"),
        (["add", "--shop", "a b", "--every", "6h"], "no member id has"),
        (["add", "--source", "nowhere", "--every", "6h"], "unknown source"),
        (["add", "--all", "--cron", "0 3 30 2 *"], "bad day-of-month"),
        (["add", "--all", "--cron", "0 3 * * *", "--timezone", "Mars/Base"], "unknown time zone"),
        (["preview", "7"], "there is no schedule 7"),
        (["remove", "7"], "there is no schedule 7"),
        (["enable", "7"], "there is no schedule 7"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(run: Run, words: list[str], complaint: str) -> None:
    done = run("schedule", *words)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["crawl", "-", "--mode", "refresh"], "--mode refresh and --older-than go together"),
        (["crawl", "-", "--older-than", "7d"], "--mode refresh and --older-than go together"),
        (["crawl", "-", "--mode", "new", "--since", "last"], "--since leaves nothing to --mode"),
        (["recrawl", "--all", "--mode", "refresh"], "--mode refresh and --older-than go together"),
        (["recrawl", "--all", "--mode", "newest"], "--mode"),
    ],
)
def test_a_mode_that_makes_no_sense_is_refused(run: Run, words: list[str], complaint: str) -> None:
    done = run(*words, stdin=b"one\n")
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err


def test_a_refresh_crawls_old_shops_once_and_says_when_none_is_old(tmp_path: Path) -> None:
    with SimulatorProcess(shops=0, token=TOKEN, extra={"one": 30, "two": 5}) as simulator:
        env = {"data_dir": tmp_path / "data", "tmapi_tokens": TOKEN, "tmapi_base_url": simulator.url}

        def run(*arguments: str) -> Done:
            return run_here(tmp_path, *arguments, "--quiet", env=env, stdin=b"one\ntwo\n")

        first = run("crawl", "-", "--mode", "refresh", "--older-than", "1d", "--json")
        assert (first.code, json.loads(first.out)["shops"]) == (0, 2)
        calls = sum(simulator.calls()["outcomes"].values())
        again = run("crawl", "-", "--mode", "refresh", "--older-than", "1d", "--json")
        assert (again.code, json.loads(again.out)["fresh"]) == (0, 2)
        told = run_here(tmp_path, "recrawl", "--all", "--mode", "refresh", "--older-than", "1d", env=env)
        assert told.code == 0
        assert "nothing to do: none of the 2 shops is due for a refresh" in told.err
        assert sum(simulator.calls()["outcomes"].values()) == calls


@pytest.mark.slow
def test_only_pages_with_something_new_are_read(tmp_path: Path) -> None:
    with SimulatorProcess(shops=0, token=TOKEN, extra={"one": 200}) as simulator:
        env = {"data_dir": tmp_path / "data", "tmapi_tokens": TOKEN, "tmapi_base_url": simulator.url}

        def crawl(*arguments: str) -> tuple[dict[str, Any], int]:
            simulator.control("POST", "reset")
            done = run_here(tmp_path, *arguments, "--quiet", "--json", env=env, stdin=b"one\n")
            assert done.code == 0, done.err
            return json.loads(done.out), simulator.calls()["outcomes"]["200"]

        first, calls = crawl("crawl", "-", "--mode", "new")
        assert (first["items"]["new"], calls >= 10) == (200, True), "nothing was known yet"
        simulator.script({"shop": "one", "change": {"appear": 25}})
        second, calls = crawl("crawl", "-", "--mode", "new")
        assert (second["items"]["new"], calls) == (25, 3)
        third, calls = crawl("recrawl", "one", "--mode", "new")
        assert (third["items"]["new"], calls) == (0, 1)
        assert third["verdicts"]["complete"] == 1
