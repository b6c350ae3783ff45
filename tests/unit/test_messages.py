"""The one message: it survives the journey, names its sending, and keeps urgent work apart."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages import QUEUE, URGENT_QUEUE, PageTask, message_id, parse_message_id, queue_for

TASK = PageTask(
    source="tmapi",
    shop="店 'x'",
    page=3,
    page_id=17,
    fence=2,
    shop_id=5,
    shop_crawl_id=6,
    crawl_id=7,
    options={"sort": "sale"},
)


def test_a_message_survives_json() -> None:
    assert msgspec.convert(json.loads(json.dumps(TASK.kwargs())), PageTask) == TASK


def test_a_newer_producers_unknown_field_does_not_stop_a_worker() -> None:
    assert msgspec.convert(TASK.kwargs() | {"later": 1}, PageTask) == TASK


@pytest.mark.parametrize("broken", [{}, {"page": "three"}, {"page": None}, {"fence": 1.5}])
def test_a_broken_message_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(TASK.kwargs() | broken if broken else {}, PageTask)


def test_options_are_not_shared_between_messages() -> None:
    one, two = (PageTask("s", "x", 1, 1, 1, 1, 1, 1) for _ in range(2))
    assert one.options == {}
    assert one.options is not two.options


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1))
def test_a_message_id_names_its_page_and_fence(page_id: int, fence: int) -> None:
    assert parse_message_id(message_id(page_id, fence)) == (page_id, fence)


@pytest.mark.parametrize(
    "text",
    ["", "-", "1", "1-", "-1", "1-2-3", "a-b", "1.5-2", "+1-2", " 1-2", "²-1", "٣-1", "9" * 5000 + "-1", "1-0x2"],
)
def test_any_other_id_names_nothing(text: str) -> None:
    assert parse_message_id(text) is None


@given(st.text())
def test_no_text_is_too_strange_to_be_no_message_id(text: str) -> None:
    found = parse_message_id(text)
    assert found is None or message_id(*found) == text or text.startswith("0") or "-0" in text


@pytest.mark.parametrize(("priority", "queue"), [(0, URGENT_QUEUE), (4, URGENT_QUEUE), (5, QUEUE), (9, QUEUE)])
def test_urgent_pages_have_a_queue_of_their_own(priority: int, queue: str) -> None:
    assert queue_for(priority) == queue
