"""Webhooks: every change reaches its subscriber at least once, in order and signed, whatever happens on the way."""

import random
import ssl
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncEngine

from models.errors import UsageError
from models.settings import Settings, load_settings
from models.subscriptions import (
    list_subscriptions,
    pause_subscription,
    redeliver,
    remove_subscription,
    reseal_subscriptions,
    resume_subscription,
)
from models.tables import change
from models.vault import Vault, new_key
from producer.webhooks.deliver import Deliverer
from tests.changes import SECRET, ids, keep, make_shops, moved, name_item, subscribe
from tests.ledger import START, after
from tests.receiver import HUNG_UP, Message, Reply, receiving
from tests.webhooks import KEY, Watch, deliverer, engine, make_changes, row_of, run_until_idle, settings, waiting, watch

__all__ = ["deliverer", "engine", "settings", "watch"]


async def test_changes_arrive_signed_in_order_and_a_hundred_at_a_time(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings, watch: Watch
) -> None:
    with receiving() as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 250)
        await run_until_idle(deliverer)
    assert [len(message.ids) for message in receiver.messages] == [100, 100, 50]
    assert receiver.ids == made
    names = [message.headers["x-shopcrawl-delivery"] for message in receiver.messages]
    assert names[0] == f"1-{made[0]}-{made[99]}-100" and len(set(names)) == 3
    assert {message.headers["content-type"] for message in receiver.messages} == {"application/json"}
    stamp = int(watch.now().timestamp())
    assert receiver.messages[0].headers["x-shopcrawl-signature"].startswith(f"t={stamp},v1=")
    row = await row_of(engine)
    assert (row.cursor, row.delivered, row.failures, row.reason) == (made[-1], 250, 0, None)
    assert await waiting(engine) == []


async def test_a_message_tells_all_of_a_change(engine: AsyncEngine, deliverer: Deliverer, settings: Settings) -> None:
    with receiving() as receiver:
        [shop_id] = await make_shops(engine, "jane")
        await subscribe(engine, Vault(settings), receiver.url)
        await name_item(engine, shop_id, "612", "茶 cup")
        await keep(engine, moved(shop_id, "612", 1.5, price=("12.500000", "11")), moved(shop_id, "7", 2.5, "gone"))
        await run_until_idle(deliverer)
        [message] = receiver.messages
    first, second = await ids(engine)
    common = {"source": "tmapi", "shop": "jane"}
    assert message.content == {
        "subscription": 1,
        "deliveries": [
            {"id": first, "kind": "price", "item_id": "612", "at": "2026-03-01T12:00:01.500000Z", "title": "茶 cup",
             "before": {"price": "12.5"}, "after": {"price": "11"}, **common},
            {"id": second, "kind": "gone", "item_id": "7", "at": "2026-03-01T12:00:02.500000Z",
             "before": None, "after": None, **common},
        ],
    }  # fmt: skip


async def test_each_subscriber_gets_its_kinds_and_its_shop(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings
) -> None:
    with receiving() as receiver:
        one, two = await make_shops(engine, "one", "two")
        await keep(engine, moved(one, "early", 0.5))
        vault = Vault(settings)
        await subscribe(engine, vault, receiver.url)
        await subscribe(engine, vault, receiver.url, kinds=["stock", "gone"], shop_id=two)
        await keep(engine, *(moved(shop, f"{shop}-{kind}", 1.5, kind) for shop in (one, two) for kind in KINDS))
        await run_until_idle(deliverer)

    def got(number: int) -> set[tuple[str, str]]:
        found = [each.content for each in receiver.taken if each.content["subscription"] == number]
        return {(each["shop"], each["kind"]) for content in found for each in content["deliveries"]}

    assert got(1) == {(shop, kind) for shop in ("one", "two") for kind in ("price", "new", "gone")}
    assert got(2) == {("two", "stock"), ("two", "gone")}


KINDS = ("price", "new", "gone", "back", "title", "stock")


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_receiver_that_fails_at_random_still_gets_every_change_in_order(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings, watch: Watch, seed: int
) -> None:
    chance = random.Random(seed)

    def answer(message: Message, number: int) -> Reply | int:
        return chance.choice([200, 201, 204, 500, 503, 404, 301, HUNG_UP])

    with receiving(answer) as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = []
        for round_ in range(12):
            made += await make_changes(engine, chance.randrange(1, 60), f"shop{round_}")
            await run_until_idle(deliverer)
            watch.at += timedelta(hours=1)
        while await waiting(engine):
            watch.at += timedelta(hours=1)
            await run_until_idle(deliverer)
    assert receiver.ids == made
    assert len(receiver.messages) > len(receiver.taken) > 3
    assert (await row_of(engine)).failures == 0


async def test_a_failure_waits_longer_each_time_keeps_its_reason_and_loses_nothing(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    said = f"no\n thanks\u202e {SECRET} {KEY} " + "x" * 5000
    with receiving(lambda message, number: Reply(500, said.encode())) as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 3)
        for attempt in range(1, 15):
            await run_until_idle(deliverer)
            row = await row_of(engine)
            pause = (row.next_at - watch.now()).total_seconds()
            assert row.failures == attempt and 0 <= pause <= min(3600, 5 * 2 ** (attempt - 1))
            assert len(receiver.messages) == attempt
            watch.at = row.next_at + timedelta(microseconds=1)
    assert row.reason.startswith("HTTP 500: no thanks *** *** xxx") and len(row.reason) < 300
    assert await waiting(engine) == made and row.state == "active"
    assert [record.getMessage() for record in caplog.records] == [f"webhook 1 gets no changes, they wait: {row.reason}"]


async def test_a_receiver_that_is_gone_is_paused_until_it_is_resumed(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings, watch: Watch
) -> None:
    with receiving(lambda message, number: 200 if number else 410) as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 2)
        await run_until_idle(deliverer)
        row = await row_of(engine)
        assert (row.state, row.reason) == ("paused", "HTTP 410")
        watch.at += timedelta(days=1)
        made += await make_changes(engine, 2, "more")
        await run_until_idle(deliverer)
        assert len(receiver.messages) == 1 and await waiting(engine) == made
        async with engine.begin() as connection:
            await resume_subscription(connection, 1, watch.now())
        await run_until_idle(deliverer)
    assert receiver.ids == made
    row = await row_of(engine)
    assert (row.state, row.reason, row.failures) == ("active", None, 0)


async def test_a_paused_one_gets_nothing_until_it_is_resumed(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings, watch: Watch
) -> None:
    with receiving() as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        async with engine.begin() as connection:
            await pause_subscription(connection, 1)
        made = await make_changes(engine, 2)
        await run_until_idle(deliverer)
        assert receiver.messages == []
        async with engine.begin() as connection:
            await resume_subscription(connection, 1, watch.now())
        await run_until_idle(deliverer)
    assert receiver.ids == made


async def test_redirects_and_proxies_are_not_followed(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with receiving() as elsewhere, receiving(lambda message, number: Reply(307, b"", moved_to)) as receiver:
        moved_to = {"Location": elsewhere.url}
        await subscribe(engine, Vault(settings), receiver.url)
        await make_changes(engine, 1)
        await run_until_idle(deliverer)
    assert (len(receiver.messages), elsewhere.messages) == (1, [])
    assert (await row_of(engine)).reason == "HTTP 307: redirects are not followed"


async def test_an_untrusted_certificate_gets_nothing(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parents[1] / "unit" / "untrusted.pem")
    with receiving(tls=context) as receiver:
        await subscribe(engine, Vault(settings), receiver.url.replace("http:", "https:"))
        await make_changes(engine, 1)
        await run_until_idle(deliverer)
    assert receiver.messages == []
    assert (await row_of(engine)).reason == "its certificate is not trusted"


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:1/x?token=canary", "it cannot be reached"), ("http://[::1", "its address is not usable")],
)
async def test_an_address_that_cannot_be_used_is_told_without_being_repeated(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings, url: str, reason: str
) -> None:
    await subscribe(engine, Vault(settings), url)
    await make_changes(engine, 1)
    await run_until_idle(deliverer)
    assert (await row_of(engine)).reason == reason


async def test_a_silent_receiver_is_given_up_after_the_timeout(
    engine: AsyncEngine, settings: Settings, watch: Watch, tmp_path: Path
) -> None:
    go = threading.Event()

    def answer(message: Message, number: int) -> int:
        go.wait(30)
        return 200

    brief = settings.model_copy(update={"webhook_timeout": 0.2})
    with receiving(answer) as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        await make_changes(engine, 1)
        await run_until_idle(Deliverer(brief, engine, watch))
        go.set()
    assert (await row_of(engine)).reason == "no answer within 0.2 s"


async def test_an_endless_answer_is_not_read_to_its_end(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings
) -> None:
    with receiving(lambda message, number: Reply(200, b"x" * 50_000_000)) as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 1)
        await run_until_idle(deliverer)
    assert receiver.ids == made and await waiting(engine) == []


async def test_a_secret_that_no_key_opens_sends_nothing_and_says_so(
    engine: AsyncEngine, settings: Settings, watch: Watch
) -> None:
    with receiving() as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 1)
        lost = settings.model_copy(update={"secret_key": load_settings(secret_key=new_key()).secret_key})
        await run_until_idle(Deliverer(lost, engine, watch))
        assert "sealed with a key that" in (await row_of(engine)).reason
        assert receiver.messages == [] and await waiting(engine) == made


async def test_a_rotated_key_opens_the_secret_afterwards(engine: AsyncEngine, settings: Settings, watch: Watch) -> None:
    both = load_settings(secret_key=f"{new_key()},{KEY}")
    newest = settings.model_copy(update={"secret_key": both.secret_key[:1]})
    with receiving() as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        async with engine.begin() as connection:
            assert await reseal_subscriptions(connection, Vault(both)) == (1, 0)
            assert await reseal_subscriptions(connection, Vault(settings)) == (0, 1)
        made = await make_changes(engine, 1)
        await run_until_idle(Deliverer(newest, engine, watch))
    assert receiver.ids == made


async def test_redelivery_fills_in_what_the_subscription_wants_once(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings
) -> None:
    with receiving() as receiver:
        one, two = await make_shops(engine, "one", "two")
        made = [moved(shop, f"{shop}-{n}", 1.5 + n, kind) for n, kind in enumerate(KINDS) for shop in (one, two)]
        await keep(engine, *made)
        await subscribe(engine, Vault(settings), receiver.url, kinds=["new", "gone", "stock"], shop_id=two)
        await run_until_idle(deliverer)
        assert receiver.messages == []
        async with engine.begin() as connection:
            assert await redeliver(connection, 1, after(3)) == 2  # gone at 3.5 and stock at 6.5, not new at 2.5
            assert await redeliver(connection, 1, after(3)) == 0
            assert await redeliver(connection, 1, START) == 1
            with pytest.raises(UsageError, match="there is no webhook 7"):
                await redeliver(connection, 7, START)
        await run_until_idle(deliverer)
    found = [each for message in receiver.taken for each in message.content["deliveries"]]
    assert [(each["shop"], each["kind"]) for each in found] == [("two", "new"), ("two", "gone"), ("two", "stock")]


async def test_changes_taken_back_meanwhile_leave_the_outbox(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings
) -> None:
    with receiving() as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 150)
        async with engine.begin() as connection:
            await connection.execute(sa.delete(change).where(change.c.id.in_(made[:110])))
        await run_until_idle(deliverer)
    assert receiver.ids == made[110:] and await waiting(engine) == []
    assert (await row_of(engine)).delivered == 40


async def test_the_list_shows_how_it_goes_and_neither_secret_nor_query(engine: AsyncEngine, settings: Settings) -> None:
    [shop_id] = await make_shops(engine, "jane")
    await subscribe(engine, Vault(settings), "https://example.com/a?token=canary", kinds=["price"], shop_id=shop_id)
    await subscribe(engine, Vault(settings), "https://example.com/b", kinds=["gone"])
    await keep(engine, moved(shop_id, "1", 1.5), moved(shop_id, "2", 1.5))
    async with engine.connect() as connection:
        one, two = await list_subscriptions(connection)
    assert (one.url, one.kinds, one.source, one.shop, one.waiting) == (
        "https://example.com/a?…", ["price"], "tmapi", "jane", 2,
    )  # fmt: skip
    assert (two.url, two.shop, two.waiting, two.state) == ("https://example.com/b", None, 0, "active")
    assert SECRET not in repr((one, two)) and "canary" not in repr(one)


async def test_removing_one_forgets_what_waits_for_it(engine: AsyncEngine, settings: Settings) -> None:
    for url in ("https://example.com/a", "https://example.com/b"):
        await subscribe(engine, Vault(settings), url)
    made = await make_changes(engine, 2)
    async with engine.begin() as connection:
        await remove_subscription(connection, 1)
        with pytest.raises(UsageError, match="there is no webhook 1: `shopcrawl webhook list`"):
            await remove_subscription(connection, 1)
    assert (await waiting(engine, 1), await waiting(engine, 2)) == ([], made)


async def test_what_waits_is_counted_for_prometheus(
    engine: AsyncEngine, deliverer: Deliverer, settings: Settings
) -> None:
    def metric(name: str) -> float:
        return REGISTRY.get_sample_value(f"shopcrawl_webhook_{name}") or 0

    taken, failures = metric("changes_total"), metric("failures_total")
    with receiving(lambda message, number: 200 if number else 500) as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        await make_changes(engine, 7)
        await run_until_idle(deliverer)
        assert await deliverer.measure() >= 15
        assert (metric("waiting"), metric("failures_total") - failures) == (7, 1)
        async with engine.begin() as connection:
            await resume_subscription(connection, 1, START)
        await run_until_idle(deliverer)
        await deliverer.measure()
    assert (metric("waiting"), metric("changes_total") - taken) == (0, 7)
