"""Doctor finds what is wrong and names its cure; a re-crawl takes exactly the shops that were asked for."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.e2e.crawled import HOLED, REFUSED, SOUND, Crawled, run_alone
from tests.e2e.fleet import TOKEN

pytestmark = pytest.mark.e2e


def test_doctor_finds_a_working_set_up_sound(crawled: Crawled) -> None:
    done = crawled.here("doctor")
    assert (done.code, done.err) == (0, "")
    assert "✘" not in done.out
    sources = [f"tmapi {what}" for what in ("credential", "address", "answer")]
    for name in ("database", "schema", "redis", "clock", *sources, "data folder"):
        assert f"✔ {name}:" in done.out or f"▲ {name}:" in done.out
    assert TOKEN not in done.out


@pytest.mark.parametrize(
    ("changed", "cure"),
    [
        ({"tmapi_tokens": ""}, "set SHOPCRAWL_TMAPI_TOKENS"),
        ({"tmapi_base_url": "ftp://api"}, "SHOPCRAWL_TMAPI_BASE_URL must look like"),
        ({"tmapi_base_url": "http://127.0.0.1:1"}, "check the network"),
        ({"top_app_key": "canary-key"}, "set SHOPCRAWL_TOP_APP_KEY and SHOPCRAWL_TOP_APP_SECRET"),
        ({"redis_url": "redis://:canary-r@127.0.0.1:1/0"}, "start Redis, or correct SHOPCRAWL_REDIS_URL"),
        ({"redis_url": "http://x"}, "SHOPCRAWL_REDIS_URL"),
        ({"database_url": "postgresql://u:canary-d@127.0.0.1:1/d"}, "start the database, or correct"),
        ({"database_url": "mysql://x"}, "SHOPCRAWL_DATABASE_URL"),
        ({"data_dir": "/proc/no"}, "set SHOPCRAWL_DATA_DIR"),
    ],
)
def test_doctor_names_the_cure_of_what_is_bad(crawled: Crawled, changed: dict[str, Any], cure: str) -> None:
    done = crawled.here("doctor", **changed)
    assert (done.code, done.err) == (2, "")
    bad = [line for line in done.out.splitlines() if line.startswith("✘")]
    assert len(bad) == 1 and cure in bad[0]
    assert "canary" not in done.out


def test_doctor_tells_of_an_eviction_policy_that_loses_pages(crawled: Crawled, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        done = crawled.here("doctor", redis_url=redis_url)
        client.config_set("maxmemory-policy", "noeviction")
    assert done.code == 2 and "maxmemory-policy noeviction" in done.out
    assert crawled.here("doctor", redis_url=redis_url).code == 0


def test_doctor_sends_an_old_schema_to_db_upgrade(crawled: Crawled, redis_url: str, copy: Path) -> None:
    with sqlite3.connect(copy / "shopcrawl.db") as connection:
        connection.execute("DELETE FROM alembic_version")
    connection.close()
    done = crawled.here("doctor", folder=copy, redis_url=redis_url, database_url=f"sqlite:///{copy}/shopcrawl.db")
    assert done.code == 2 and "run `shopcrawl db upgrade`" in done.out


# Re-crawls


def chosen(crawled: Crawled, copy: Path, *arguments: str) -> set[str]:
    """The shops that a re-crawl with these arguments is asked for."""
    done = crawled.here("recrawl", *arguments, "--no-follow", "--json", folder=copy)
    assert done.code == 0, done.err
    crawl_id = json.loads(done.out)["crawl_id"]
    with sqlite3.connect(copy / "shopcrawl.db") as connection:
        query = "SELECT key, priority FROM shop JOIN shop_crawl s ON s.shop_id = shop.id WHERE s.crawl_id = ?"
        rows = connection.execute(query, (crawl_id,)).fetchall()
    connection.close()
    assert {priority for _, priority in rows} <= {0}, "ahead of all other work"
    return {key for key, _ in rows}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--failed", {REFUSED}),
        ("--verdict partial", {HOLED}),
        ("--verdict partial --failed", {HOLED, REFUSED}),
        (f"{SOUND} {HOLED} {SOUND}", {SOUND, HOLED}),
        (f"{SOUND} never-seen", {SOUND, "never-seen"}),
    ],
)
def test_recrawl_selects(crawled: Crawled, copy: Path, arguments: str, expected: set[str]) -> None:
    assert chosen(crawled, copy, *arguments.split()) == expected


def test_recrawl_by_age_and_of_all(crawled: Crawled, copy: Path) -> None:
    with sqlite3.connect(copy / "shopcrawl.db") as connection:
        old = "UPDATE shop_crawl SET settled_at = '2020-01-01 00:00:00.000001' WHERE shop_id ="
        connection.execute(f"{old} (SELECT id FROM shop WHERE key = '{SOUND}')")
    connection.close()
    assert chosen(crawled, copy, "--older-than", "24h") == {SOUND}
    everything = chosen(crawled, copy, "--all")
    assert len(everything) == 14 and SOUND not in everything, "its re-crawl is pending already"
    again = crawled.here("recrawl", "--all", "--no-follow", folder=copy)
    assert again.code == 0 and "waiting for a re-crawl already" in again.err


def test_recrawl_of_a_healed_shop_is_exit_code_0_and_takes_the_data_folder_back(crawled: Crawled, copy: Path) -> None:
    done = run_alone(copy, crawled.simulator.url, "recrawl", REFUSED, HOLED, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["verdicts"] == {"complete": 2, "drifted": 0, "partial": 0, "failed": 0, "suspect": 0}
    assert told["items"]["new"] == 30 + 20, "all of one shop, and the page that was missing of the other"
