"""How the Taobao Open Platform's pages are read: in every shape, and as items."""

import json
from decimal import Decimal
from typing import Any

import pytest

from models.errors import ShopRefusedError, TransientError
from models.source import FetchedPage, Item
from tests.top_pages import FETCHED, ITEM, PAGE, ROW, SHOP, WHOLE, WRAPPER, decode, failure, item, page, task, xml

OTHER = {**ROW, "num_iid": 7}
OTHER_ITEM = Item(**{**{name: getattr(ITEM, name) for name in ITEM.__struct_fields__}, "item_id": "7"})


def shapes(rows: list[dict[str, Any]]) -> list[Any]:
    """The same page simplified, wrapped, and in XML, with a list of one also as a bare object."""
    found = [
        page(items=rows),
        page(items={"item": rows}),
        {WRAPPER: page(items=rows)},
        {WRAPPER: page(items={"item": rows})},
        {"items_inventory_get_response": page(items={"item": rows}, total_results="150")},
        xml({WRAPPER: page(items={"item": rows})}),
    ]
    if len(rows) == 1:
        found += [page(items=rows[0]), page(items={"item": rows[0]}), {WRAPPER: page(items={"item": rows[0]})}]
    return found


@pytest.mark.parametrize("shape", range(9))
def test_one_row_is_read_alike_in_every_shape(shape: int) -> None:
    assert decode(shapes([ROW])[shape]) == FETCHED


@pytest.mark.parametrize("shape", range(6))
def test_two_rows_are_read_alike_in_every_shape(shape: int) -> None:
    assert decode(shapes([ROW, OTHER])[shape]) == FetchedPage([ITEM, OTHER_ITEM], 150)


EMPTY: list[dict[str, Any]] = [
    {"total_results": 0},
    {"total_results": 0, "items": []},
    {"total_results": 0, "items": {}},
    {"total_results": 0, "items": None},
    {"total_results": 0, "items": " \n"},
    {"total_results": 0, "items": {"item": []}},
    {"total_results": 0, "items": {"item": None}},
    {"total_results": "0", "items": {"item": {}}},
]


@pytest.mark.parametrize("answer", EMPTY)
def test_an_empty_result_is_empty_in_every_shape(answer: dict[str, Any]) -> None:
    assert decode(answer) == FetchedPage([], 0)
    assert decode({WRAPPER: answer}) == FetchedPage([], 0)


@pytest.mark.parametrize("inside", ["", "<items/>", "<items></items>", "<items>\n</items>", '<items list="true"/>'])
def test_an_empty_result_in_xml_is_empty(inside: str) -> None:
    body = f"<{WRAPPER}><total_results>0</total_results>{inside}</{WRAPPER}>"
    assert decode(body.encode()) == FetchedPage([], 0)


def test_a_code_beside_a_page_is_no_error() -> None:
    for answer in (page(code=0, msg="ok"), {"code": 200, WRAPPER: PAGE}):
        assert decode(answer) == FETCHED
    assert decode({"code": 0, "total_results": 0}) == FetchedPage([], 0)


def test_xml_that_declares_entities_is_never_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.sources.top_answer.XMLParser", None)
    bomb = '<!DOCTYPE a_response [<!ENTITY a "aaaa">]><a_response>&a;</a_response>'
    for start in ("", '<?xml version="1.0"?>', '<?xml version="1.0"?>\n<!-- x -->', "<?x y?>", "\ufeff \n"):
        assert failure((start + bomb).encode()).code == "html"


def test_an_empty_page_beside_a_total_is_no_error() -> None:
    assert decode(page(items=[])) == FetchedPage([], 150)


@pytest.mark.parametrize("total", [None, ""])
@pytest.mark.parametrize("items", [[], [ROW]])
def test_a_page_without_its_total_is_asked_for_again(total: Any, items: list[Any]) -> None:
    for answer in (page(total_results=total, items=items), {WRAPPER: {"items": items}}, {WRAPPER: None}, {}):
        error = failure(answer)
        assert (type(error), error.code) == (TransientError, "no-total")


@pytest.mark.parametrize("total", [-1, 10**9 + 1, "many", "1.5万", 1.5, True, [], {}, [1], "9" * 5_000, 10**400])
def test_an_absurd_total_is_asked_for_again(total: Any) -> None:
    assert failure(page(total_results=total)).code == "bad-total"


@pytest.mark.parametrize(("total", "read"), [(0, 0), ("150", 150), (150.0, 150), ("1,500", 1_500), (10**9, 10**9)])
def test_a_total_may_be_a_number_or_text(total: Any, read: int) -> None:
    assert decode(page(total_results=total)).total == read


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b" \r\n", "empty"),
        (b"<!doctype html><html>", "html"),
        (b"\xef\xbb\xbf\n<html>", "html"),
        (b"<", "html"),
        (b" " * 5_000 + b"<html>", "html"),
        (b"<?xml version='1.0'?><rss/>", "html"),
        (WHOLE[:-1], "truncated"),
        (b"upstream request timeout", "malformed"),
        ("项".encode("gbk"), "malformed"),
        (b"[" * 200_000, "nested"),
        (b"<a_response>" * 200_000, "nested"),
        (b"<error_response><code>7</code>", "truncated"),
        (b"<error_response><code>7</co", "truncated"),
        (b"<error_response><code>7</error_response>", "malformed"),
        (b"<error_response>&unknown;</error_response>", "malformed"),
        (b"<error_response>\x01</error_response>", "malformed"),
        (b"<error_response>\xff</error_response>", "malformed"),
        (b"<error_response/><error_response/>", "malformed"),
        (b'<a_response><!DOCTYPE x [<!ENTITY a "b">]></a_response>', "malformed"),
        (b'<?xml version="1.0"?><!DOCTYPE a_response [<!ENTITY a "aa">]><a_response>&a;</a_response>', "html"),
        ("<a_response/>".encode("utf-16"), "malformed"),
        (b"<a_response>" + b"x" * 8 * 1024 * 1024 + b"</a_response>", "oversize"),
        (json.dumps(page(items=[ROW] * 1_001)).encode(), "oversize"),
        (b"[]", "no-object"),
        (b"null", "no-object"),
        (b'"maintenance"', "no-object"),
        (json.dumps(page(items="busy")).encode(), "items-type"),
        (json.dumps(page(items=7)).encode(), "items-type"),
        (json.dumps(page(items={"item": "x"})).encode(), "items-type"),
    ],
)
def test_what_is_no_page_is_asked_for_again(body: bytes, word: str) -> None:
    error = failure(body)
    assert (type(error), error.code) == (TransientError, word)
    assert len(str(error)) < 200 and str(error).isprintable()


def test_the_encoding_that_xml_names_does_not_matter() -> None:
    body = xml({WRAPPER: page(items={"item": [ROW]})})
    for name in (b"GBK", b"utf-16", b"nonsense"):
        assert decode(body.replace(b"utf-8", name, 1)) == FETCHED
    assert decode(b"\xef\xbb\xbf" + body) == FETCHED


def test_raw_control_characters_and_broken_emoji_are_repaired() -> None:
    body = json.dumps(page(items=[{**ROW, "title": "TITLE"}]), ensure_ascii=False)
    fetched = decode(body.replace("TITLE", "a\tb\nc\rd\\u0000\\ud83d").encode())
    assert fetched.items[0].title == "a\tb\nc\rd\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("sent", "item_id"),
    [(9007199254740993, "9007199254740993"), ("9007199254740993", "9007199254740993"), (2**63, str(2**63)),
     (" 12 ", "12"), (1, "1"), ("abc-1", "abc-1")],
)  # fmt: skip
def test_ids_are_exact(sent: Any, item_id: str) -> None:
    assert item(num_iid=sent)[0].item_id == item_id


@pytest.mark.parametrize("bad", [None, "", " ", 0, -1, 10**20, True, 1.5, [], {}, "a b", "a'b", "x" * 65, "项"])
def test_a_row_without_a_usable_id_is_dropped_and_noted(bad: Any) -> None:
    assert decode(page(items=[{**ROW, "num_iid": bad}, ROW])) == FetchedPage([ITEM], 150, None, ("item-without-id",))


def test_rows_that_are_no_objects_are_dropped_and_noted() -> None:
    assert decode(page(items=[None, "x", 7, [], ROW])) == FetchedPage([ITEM], 150, None, ("item-not-object",))


def test_a_field_that_was_not_sent_is_absent() -> None:
    assert decode(page(items=[{"num_iid": 5, "nick": SHOP}])).items == [Item(item_id="5")]
    silent = dict.fromkeys(ROW, None) | {"num_iid": 5, "nick": SHOP, "title": "", "new": None, "other": ""}
    assert decode(page(items=[silent])) == FetchedPage([Item(item_id="5")], 150)


@pytest.mark.parametrize(
    ("key", "sent", "field", "read"),
    [
        ("cid", "132443", "category_id", "132443"),
        ("num", "0", "stock", 0),
        ("num", -3, "stock", -3),
        ("price", 5, "price", Decimal(5)),
        ("price", "1,234.5", "price", Decimal("1234.5")),
        ("outer_id", 34143554352, "outer_id", "34143554352"),
        ("props", "1:2", "props", [["1", "2"]]),
        ("props", ";1:2; 3:-4 ;", "props", [["1", "2"], ["3", "-4"]]),
        ("props", "1:2:颜色:红:深;3:4", "props", [["1", "2", "颜色", "红:深"], ["3", "4"]]),
    ],
)
def test_habits_of_the_platform_are_understood(key: str, sent: Any, field: str, read: Any) -> None:
    found, anomalies = item(**{key: sent})
    assert (getattr(found, field), type(getattr(found, field))) == (read, type(read))
    assert (found.extra, anomalies) == (ITEM.extra, ())


WRONG: dict[str, tuple[str, list[Any]]] = {
    "title": ("title", [True, 1.5, [], {"zh": "t"}, "x" * 10_001]),
    "cid": ("category_id", [1.5, True, [], {"a": 1}]),
    "price": ("price", ["NaN", "5元", "1e5", True, [], "9" * 40]),
    "num": ("stock", ["many", 2.5, True, [2], 2**63]),
    "props": ("props", ["1", "1:", ":2", "a:b", "1:2;x", "1：2", 7, True, [["1", "2"]], ";".join(["1:2"] * 501)]),
    "outer_id": ("outer_id", [True, [], {}]),
    "approve_status": ("status", [True, []]),
}


@pytest.mark.parametrize(
    ("key", "field", "sent"), [(key, field, sent) for key, (field, values) in WRONG.items() for sent in values]
)
def test_a_wrong_value_costs_only_its_own_field(key: str, field: str, sent: Any) -> None:
    found, anomalies = item(**{key: sent})
    assert getattr(found, field) is None
    assert found.extra is not None and found.extra["iid"] == ROW["iid"]
    assert found.extra[key] == (str(sent) if sent == 2**63 else sent)
    assert anomalies == (f"bad-{key}",)


def test_unknown_fields_are_kept() -> None:
    found, anomalies = item(modified="2026-01-01 00:00:00", flags={"a": [1]})
    assert found.extra == {"iid": ROW["iid"], "modified": "2026-01-01 00:00:00", "flags": {"a": [1]}}
    assert anomalies == ()


@pytest.mark.parametrize("position", [0, 1])
def test_one_row_of_another_seller_refuses_the_whole_page(position: int) -> None:
    rows = [ROW, ROW]
    rows[position] = {**ROW, "nick": "别人\n店", "num_iid": None}
    for answer in shapes(rows):
        error = failure(answer)
        assert (type(error), error.code) == (ShopRefusedError, "session-mixup")
        assert SHOP in error.message and "option nick" in error.message and error.message.isprintable()


def test_the_nick_option_says_whose_rows_are_expected() -> None:
    assert decode(PAGE, asked=task("mine", nick=SHOP)) == FETCHED
    assert failure(PAGE, asked=task("mine")).code == "session-mixup"
    assert failure(PAGE, asked=task(SHOP, nick="mine")).code == "session-mixup"


@pytest.mark.parametrize(
    ("nick", "anomaly"), [(None, "item-without-nick"), ("", "item-without-nick"), ([], "bad-nick"), (True, "bad-nick")]
)
def test_a_row_that_does_not_say_whose_it_is_is_noted(nick: Any, anomaly: str) -> None:
    assert decode(page(items=[{**ROW, "nick": nick}])) == FetchedPage([ITEM], 150, None, (anomaly,))


def test_a_nick_of_digits_may_come_as_a_number() -> None:
    assert decode(page(items=[{**ROW, "nick": 12345}]), asked=task("12345")) == FETCHED
    assert decode(page(items=[{**ROW, "nick": f" {SHOP} "}])) == FETCHED
    assert failure(page(items=[{**ROW, "nick": 12346}]), asked=task("12345")).code == "session-mixup"
