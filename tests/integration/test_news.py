"""The log tells of each shop that did not end complete and of each crawl's end, once it is so."""

import logging

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from producer.news import tell
from producer.planning.review import review
from tests.ledger import SETTINGS, after, dispatch, done, ended, engine_for, items, store, submit


async def review_and_tell(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        reviewed = await review(connection, now=after(5), settings=SETTINGS)
    async with engine.connect() as connection:
        await tell(connection, reviewed, now=after(6))


async def test_unhappy_shops_and_the_end_of_a_crawl_have_a_line_with_fields(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with engine_for(database_url) as engine:
        crawl_id = await submit(engine, "bad", "fine", "last")
        bad, fine, last = await dispatch(engine)
        await store(engine, ended(bad, "refused", reason="422: shop not found"), done(fine, items(1), total=1))
        await review_and_tell(engine)
        (line,) = caplog.records
        told = {name: getattr(line, name) for name in ("message", "crawl", "shop", "verdict")}
        assert told == {"message": "shop settled", "crawl": crawl_id, "shop": "bad", "verdict": "failed"}
        assert "422: shop not found" in vars(line)["reason"]
        caplog.clear()
        await store(engine, done(last, items(2), total=1))
        await review_and_tell(engine)
        await review_and_tell(engine)
    (line,) = caplog.records
    figures = vars(line)
    assert (line.message, figures["crawl"], figures["shops"]) == ("crawl finished", crawl_id, 3)
    assert figures["verdicts"] == {"complete": 2, "drifted": 0, "partial": 0, "failed": 1, "suspect": 0}
    assert figures["items"]["new"] == 2 and figures["calls"] == {"200": 2, "417": 1}
    assert line.levelno == logging.INFO
