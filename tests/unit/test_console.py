"""What the terminal shows: complete, within its width, without a secret, and deaf to what scraped text says."""

import io
import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from models.credentials import Parked
from models.fleet import Ban, LimitState
from models.status import CrawlLine, CrawlStatus, Items, Pages, UnhappyShop, Verdicts, exit_code
from producer.console import print_crawls, print_status, print_summary, shown_location
from producer.console.figures import unhappy_table
from producer.console.progress import Fleet, Pace, View, block, line
from producer.console.text import duration, number, outcomes, plain, share, small_bar
from producer.console.watch import Block, Lines, Silent, display_for

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
RUNNING = CrawlStatus(
    crawl=7,
    state="running",
    shops=1000,
    verdicts=Verdicts(402, 8, 2, 1),
    pages=Pages(2710, 211, 2113, 3),
    items=Items(41020, 20811, 40870, 12),
    calls={"200": 2113, "503": 31, "417": 14},
    elapsed_s=18.2,
)
FINISHED = CrawlStatus(
    crawl=7,
    state="finished",
    shops=1000,
    verdicts=Verdicts(957, 31, 8, 4),
    pages=Pages(0, 0, 5034, 12),
    items=Items(98400, 98231, 98200, 5),
    calls={"200": 5034, "503": 96, "truncated": 2},
    elapsed_s=42.5,
)
HAPPY = CrawlStatus(8, "finished", 3, Verdicts(3), Pages(done=5), Items(9, 9, 9), {"200": 5}, 2.0)
PARKED = Parked("tmapi", "1a2b", "439: insufficient [bold]balance[/bold]", NOW, NOW, 60)
LIMIT = LimitState("tmapi", "9f8e", 20, 20, 19, 176, 2, None)
EVIL = "[red]x[/red]\x1b[31m\x1b]0;owned\x07\x9b2J\r\n\u202ehidden\u2066"


def shown(*renderables: RenderableType, width: int = 80) -> str:
    console, text = recorder(width)
    console.print(*renderables)
    return text.getvalue()


def recorder(width: int = 80, *, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=width, force_terminal=terminal, color_system=None), text


def summary(status: CrawlStatus, unhappy: list[UnhappyShop] | None = None, width: int = 80) -> str:
    console, text = recorder(width)
    print_summary(console, status, unhappy or [], database="data/shopcrawl.db")
    return text.getvalue()


def test_the_live_block_shows_every_figure() -> None:
    text = shown(block(View(RUNNING, Pace(118.4, 2116, 1, 10), Fleet(2, (LIMIT,))), 80))
    for part in (
        "crawl 7",
        "41.3 %",
        "413 of 1,000 settled · 8 drifted · 2 partial · 1 failed",
        "2,113 of 5,037 · 3 dead · 118 pages/s · 0:18 elapsed · about 0:24 left",
        "41,020 seen · 40,870 new · 12 changed",
        "200 2,113   503 31   417 14",
        "tmapi 9f8e: limit 20 · 19 in flight · 176 waiting · 2 workers",
    ):
        assert part in text


def test_a_parked_token_is_told_with_the_cure_and_stops_the_forecast() -> None:
    parked = LimitState("tmapi", "1a2b", 20, 20, 0, 0, 1, "439")
    text = shown(block(View(RUNNING, Pace(118.4, 2116, 1, 10), Fleet(1, (parked,)), (PARKED,)), 200), width=200)
    words = "▲ tmapi waits: token 1a2b parked: 439: insufficient [bold]balance[/bold]. Top up or mend it"
    assert f"{words}, then `shopcrawl resume`; nothing is lost" in text
    assert "left" not in text


def test_a_source_with_another_token_is_not_said_to_wait() -> None:
    text = shown(block(View(RUNNING, Pace(), Fleet(1, (LIMIT,)), (PARKED,)), 120), width=120)
    assert "tmapi goes on without token 1a2b parked" in text
    assert "tmapi waits" not in text


def ban(scope: str, seconds: float) -> Ban:
    return Ban(scope, NOW + timedelta(seconds=seconds), seconds, "7: [bold]enough[/bold] for today")


def banned(name: str, seconds: float, parked: str | None = None) -> LimitState:
    return LimitState("top", name, 20, 20, 0, 0, 1, parked, ban(name, seconds))


def test_a_ban_is_told_with_its_end_and_stops_the_forecast() -> None:
    limits = (LIMIT, banned("app", 31_062), banned("app2", 40_000))
    text = shown(block(View(RUNNING, Pace(118.4, 2116, 1, 10), Fleet(1, limits)), 200), width=200)
    assert (
        "▲ top waits until 20:38 UTC: 7: [bold]enough[/bold] for today. It goes on by itself; nothing is lost" in text
    )
    assert "tmapi 9f8e: limit 20" in text
    assert "top app" not in text
    assert "left" not in text
    console, said = recorder(200)
    print_status(console, RUNNING, limits=limits, database="data/shopcrawl.db")
    assert "▲ top waits until 20:38 UTC" in said.getvalue()


def test_a_banned_app_beside_a_free_one_is_named() -> None:
    free = LimitState("top", "free", 20, 20, 0, 0, 1, None)
    limits = (banned("app", 31_062), free, banned("gone", 31_062, parked="439"))
    text = shown(block(View(RUNNING, Pace(), Fleet(1, limits)), 200), width=200)
    assert "▲ top goes on without app until 20:38 UTC: 7:" in text
    assert "waits" not in text and "gone" not in text


def test_a_ban_that_workers_wait_out_is_not_worth_a_line() -> None:
    text = shown(block(View(RUNNING, Pace(118.4, 2116, 1, 10), Fleet(1, (banned("app", 2),))), 200), width=200)
    assert "▲" not in text
    assert "top app: limit 20" in text and "about 0:24 left" in text


def test_a_ban_is_logged_once_while_it_lasts() -> None:
    console, text = recorder(300)
    lines = Lines(console, clock=lambda: 0.0)
    for seconds in (100, 99.4, 98):
        state = LimitState("top", "app", 20, 20, 0, 0, 1, None, Ban("app", NOW, seconds, "7: enough"))
        lines.show(View(RUNNING, Pace(), Fleet(1, (state,))))
    assert text.getvalue().count("top waits until 12:00 UTC") == 1


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    limits = (LIMIT, banned("app", 31_062))
    view = View(RUNNING, Pace(118.4, 2116, 1, 10), Fleet(2, limits), (PARKED,), "Redis does not answer")
    shops = [
        UnhappyShop("tmapi", "b" * 300, "failed", "why " * 100),
        UnhappyShop("tmapi", "店" * 90, "partial", "因" * 90),
    ]
    texts = [shown(block(view, width), width=width), summary(FINISHED, shops, width)]
    assert max(Console(width=width).measure(text).maximum for text in texts) <= width
    assert all("…" in text for text in texts[1:])


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (Verdicts(2, partial=1), "1 of 3 shops incomplete"),
        (Verdicts(2, suspect=1), "1 of 3 shops suspect"),
        (Verdicts(1, failed=1, suspect=1), "2 of 3 shops incomplete or suspect"),
    ],
)
def test_a_shop_that_shrank_is_told_and_looked_at_once_more(verdicts: Verdicts, words: str) -> None:
    text = summary(msgspec.structs.replace(HAPPY, verdicts=verdicts))
    assert words in text
    assert ("recrawl --verdict suspect" in text) == bool(verdicts.suspect)
    assert exit_code(msgspec.structs.replace(HAPPY, verdicts=verdicts)) == 3


def test_the_list_of_crawls_has_a_column_of_suspects_when_there_are_any() -> None:
    for suspects in (0, 4):
        console, text = recorder(120)
        print_crawls(console, [CrawlLine(7, "crawl", "finished", NOW, NOW, 9, Verdicts(9, suspect=suspects))], now=NOW)
        assert ("suspect" in text.getvalue()) == bool(suspects)


def test_the_summary_tells_verdicts_costs_place_and_next_steps() -> None:
    text = summary(FINISHED, [UnhappyShop("tmapi", "b2b-1", "failed", "422: shop not found")], 100)
    flat = re.sub(" +", " ", text)
    for part in (
        "Crawl 7 finished: 12 of 1,000 shops incomplete",
        "complete 957 95.7 % ███",
        "failed 4 0.4 %",
        "503 96 1.9 %",
        "98,231 unique · 98,200 new · 5 changed · 98,400 rows seen",
        "5,034 done · 12 dead · 119 pages/s · 0:42 elapsed",
        "data/shopcrawl.db",
        "b2b-1 422: shop not found",
        "and 11 more",
        "shopcrawl export items --format csv > items.csv",
        "shopcrawl recrawl --verdict partial",
        "shopcrawl recrawl --failed",
    ):
        assert part in flat


def test_a_summary_without_trouble_offers_no_cure_for_it() -> None:
    text = summary(HAPPY)
    assert "✔ Crawl 8 finished: all 3 shops complete" in text
    assert not re.search("recrawl|resume|dead|partial|failed|more", text)


def test_the_summary_of_an_interrupted_crawl_says_how_to_go_on() -> None:
    text = summary(RUNNING)
    assert "587 shops open, all work is kept" in text
    assert "shopcrawl resume" in text


def test_at_most_ten_unhappy_shops_are_named() -> None:
    shops = [UnhappyShop("tmapi", f"shop-{place}", "failed", "no") for place in range(12)]
    text = summary(FINISHED, shops)
    assert text.count("shop-") == 10
    assert "and 2 more" in text


@pytest.mark.parametrize("key", ["b2b-2208573", "店铺" * 7])
def test_at_80_columns_verdict_and_shop_are_whole_and_the_reason_is_cut(key: str) -> None:
    shops = [UnhappyShop("tmapi", key, verdict, "417: no data " * 20) for verdict in ("failed", "partial")]
    for text in (summary(FINISHED, shops), shown(unhappy_table(FINISHED, shops))):
        told = [line.rstrip().split(maxsplit=2) for line in text.splitlines() if key in line]
        assert [line[:2] for line in told] == [["failed", key], ["partial", key]]
        assert all(line[2].startswith("417: no data") and line[2].endswith("…") for line in told)


def test_scraped_text_is_shown_as_it_is_and_controls_nothing() -> None:
    view = View(RUNNING, Pace(), None, (PARKED,))
    console, text = recorder(200, terminal=True)
    print_summary(console, FINISHED, [UnhappyShop("tmapi", EVIL, "failed", EVIL)], database=EVIL)
    print_status(console, RUNNING, [UnhappyShop("tmapi", EVIL, "failed", EVIL)], [PARKED], database=EVIL)
    console.print(block(view, 200))
    console.print(line(view), markup=False)
    out = text.getvalue()
    assert out.count("[red]x[/red]") == 6
    styles = re.compile(r"\x1b\[[0-9;]*m")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", styles.sub("", out))
    assert "\x1b[31m" not in out


@given(st.text())
def test_plain_text_is_one_line_of_visible_characters(text: str) -> None:
    clean = plain(text, 50)
    assert len(clean) <= 50
    assert clean == " ".join(clean.split())
    assert clean.isprintable() or " " in clean or "\u3000" in text


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("sqlite+aiosqlite:////data/shop.db", "/data/shop.db"),
        ("postgresql+asyncpg://bob:canary@db:5432/shop?password=canary", "postgresql://bob@db:5432/shop"),
        ("postgresql+asyncpg://bob:can@ary@db/shop", "the database of SHOPCRAWL_DATABASE_URL"),
        ("canary", "the database of SHOPCRAWL_DATABASE_URL"),
    ],
)
def test_the_place_of_the_data_is_shown_without_its_password(url: str, place: str) -> None:
    assert shown_location(url) == place


def test_status_and_list_of_crawls_show_their_figures() -> None:
    console, text = recorder(100)
    print_status(console, RUNNING, [], [PARKED], database="x.db")
    print_crawls(
        console,
        [
            CrawlLine(8, "recrawl", "running", NOW - timedelta(seconds=30), None, 12, Verdicts(3)),
            CrawlLine(7, "crawl", "finished", NOW, NOW + timedelta(hours=2), 1000, Verdicts(959, 31, 8, 2)),
        ],
        now=NOW,
    )
    flat = re.sub(" +", " ", text.getvalue())
    for part in (
        "Crawl 7 running",
        "open 587 58.7 %",
        "2,921 to go",
        "tmapi waits: token 1a2b",
        "8 2026-05-01 11:59 0:30 12 3 – – – running recrawl",
        "7 2026-05-01 12:00 2:00:00 1,000 959 31 8 2 finished",
    ):
        assert part in flat


def test_an_empty_list_of_crawls_says_how_to_start_one() -> None:
    console, text = recorder()
    print_crawls(console, [], now=NOW)
    assert "shopcrawl crawl shops.csv" in text.getvalue()


def test_the_pace_finds_a_steady_speed_at_once_and_forgets_an_old_one() -> None:
    pace = Pace()
    for second in range(4):
        pace = pace.step(100 * second, float(second))
    assert pace.per_second == pytest.approx(100)
    for second in range(4, 64):
        pace = pace.step(300 + 10 * (second - 3), float(second))
    assert pace.per_second == pytest.approx(10, rel=0.05)
    assert pace.step(0, 70.0).per_second == 0


def test_lines_come_every_ten_seconds_and_warnings_once() -> None:
    console, text = recorder()
    moment = [100.0]
    lines = Lines(console, lambda: moment[0])
    for second in range(21):
        moment[0] = 100.0 + second
        lines.show(View(RUNNING, waiting=(PARKED,) if 3 <= second < 8 else ()))
    assert text.getvalue().count("crawl 7: 413/1,000 shops, 2,113/5,037 pages") == 3
    assert text.getvalue().count("tmapi waits") == 1


def test_the_display_fits_its_stream() -> None:
    assert type(display_for(recorder()[0], quiet=True)) is Silent
    assert type(display_for(recorder()[0], quiet=False)) is Lines
    assert type(display_for(recorder(terminal=True)[0], quiet=False)) is Block


def test_the_live_block_leaves_nothing_behind() -> None:
    console, text = recorder(terminal=True)
    with display_for(console, quiet=False) as display:
        display.show(View(RUNNING))
    assert "413 of 1,000 settled" in text.getvalue()
    assert text.getvalue().rstrip("\r").endswith("\x1b[2K")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (67, "1:07"), (3_599, "59:59"), (11_100, "3:05:00"), (187_200, "2 d 4 h")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shares_never_hide_a_few_nor_claim_all() -> None:
    assert [share(part, 100_000) for part in (0, 1, 50_000, 99_999, 100_000)] == [
        "0.0 %",
        "<0.1 %",
        "50.0 %",
        ">99.9 %",
        "100.0 %",
    ]
    assert share(0, 0) == "–"


def test_bars_are_full_for_all_and_visible_for_a_few() -> None:
    assert small_bar(1000, 1000, 10) == "█" * 10
    assert small_bar(1, 1000, 10) == "▏"
    assert small_bar(0, 1000, 10) == ""
    assert small_bar(505, 1000, 10) == "█████"
    assert number(1234567) == "1,234,567"
    assert outcomes({"200": 1, "[b]": 2}).plain == "200 1   [b] 2"
