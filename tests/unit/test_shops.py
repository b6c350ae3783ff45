"""The shops file: what is understood, and the one clear line for everything that is not."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.durations import parse_duration
from models.errors import UsageError
from models.settings import load_settings
from producer.shops import read_sessions, read_shops
from tests.session_source import session_source

__all__ = ["session_source"]

SETTINGS = load_settings(tmapi_tokens="t")


def read(tmp_path: Path, content: str | bytes, **options: str) -> list[tuple[str, str, object]]:
    path = tmp_path / "shops.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(s.source, s.key, s.options["sort"]) for s in read_shops(str(path), "tmapi", options, SETTINGS).shops]


@pytest.mark.parametrize(
    "content",
    ["jane727\nb2b-22aa\n",
     "shop\njane727\nb2b-22aa\n", "\ufeffshop\r\njane727\r\n\r\nb2b-22aa", '"jane727"\n"b2b-22aa"\n',
     "shop,source\njane727,tmapi\nb2b-22aa,\n", "SHOP, sort\njane727,\n b2b-22aa ,\n"],
)  # fmt: skip
def test_one_shop_per_line_or_a_csv_with_a_header_mean_the_same(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content) == [("tmapi", "jane727", "time_up"), ("tmapi", "b2b-22aa", "time_up")]


def test_a_rows_own_option_wins_over_the_one_for_all(tmp_path: Path) -> None:
    found = read(tmp_path, "shop,sort\na1,sales\nb2,\n", sort="time_down")
    assert found == [("tmapi", "a1", "sales"), ("tmapi", "b2", "time_down")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no shops in it"),
        ("\n \n", "no shops in it"),
        ("shop\n", "no shops in it"),
        ("name,city\na,b\n", "bad header"),
        ("shop,shop\na,b\n", "bad header"),
        ("shop,,\na,b,c\n", "bad header"),
        ("shop,colour\na1,red\n", "colour"),
        ("a1\nb2\na1\n", "line 3: shop 'a1' stands in line 1 already"),
        ("shop,source\na1,nosuch\n", "line 2: unknown source 'nosuch'"),
        ("shop\n'; DROP TABLE item;--\n", "line 2"),
        ('"two\nlines"\n', "line 2"),
        ("nul\x00byte\n", "line 1"),
        ("x" * 10_000 + "\n", "line 1"),
        ("x" * 20_000 + "\n", "line 1"),
        ("shop\na1,b2\n", "2 cells, but the header has 1 columns"),
        ("shop,page_size\na1,many\n", "page_size"),
        ('"open\n', "unexpected end of data"),
        (b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_bad_input_is_refused_in_one_line_that_says_where(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(tmp_path, content)
    assert complaint in str(refused.value)
    assert str(refused.value).count("\n") == 0
    assert len(str(refused.value)) < 400


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.csv: No such file"):
        read_shops(str(tmp_path / "nowhere.csv"), "tmapi", {}, SETTINGS)


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a1\n")))
    assert [shop.key for shop in read_shops("-", "tmapi", {}, SETTINGS).shops] == ["a1"]


@given(content=st.binary(max_size=300))
def test_no_file_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "shops.csv"
    path.write_bytes(content)
    try:
        shops = read_shops(str(path), "tmapi", {}, SETTINGS).shops
    except UsageError as refused:
        assert "\n" not in str(refused)
    else:
        assert len({shop.key for shop in shops}) == len(shops)


# Sessions

SESSION = "6100canary-of-a-session"


def test_a_session_in_the_shops_file_is_no_option_and_is_not_shown(tmp_path: Path, session_source: None) -> None:
    path = tmp_path / "shops.csv"
    path.write_text(f"shop,Session,source\nb1, {SESSION} ,\nb2,,\na1,,tmapi\n")
    found = read_shops(str(path), "top", {}, SETTINGS)
    assert found.sessions == {("top", "b1"): SESSION}
    assert [(shop.source, shop.key) for shop in found.shops] == [("top", "b1"), ("top", "b2"), ("tmapi", "a1")]
    path.write_text("shop,source\nb1,\nb2,\na1,tmapi\n")
    assert found.shops == read_shops(str(path), "top", {}, SETTINGS).shops, "the same crawl with and without sessions"
    assert repr(found) == "ShopsFile(3 shops, 1 sessions)"


BAD_SESSIONS = [
    (f"shop,session,source\na1,{SESSION},tmapi\n", "line 2: source tmapi takes no sessions"),
    (f"shop,session\nb1,{SESSION} {SESSION}\n", "line 2: the session has white space or control characters inside"),
    (f'shop,session\nb1,"{SESSION}\n{SESSION}"\n', "the session has white space or control characters inside"),
    (f"shop,session\nb1,{SESSION}\x07\n", "line 2: the session has white space or control characters inside"),
    (f"shop,session\nb1,{SESSION}{'x' * 4096}\n", "line 2: the session is longer than 4096 bytes"),
    (f"shop,session\nb1,{SESSION}\nb1,{SESSION}\n", "line 3: shop 'b1' stands in line 2 already"),
    (f"shop,session\nb1,{SESSION},x\n", "line 2: 3 cells, but the header has 2 columns"),
    (f"b1,{SESSION}\n", "line 1: bad header: a CSV needs the column `shop`, found …, …"),
]


@pytest.mark.parametrize(("content", "complaint"), BAD_SESSIONS)
def test_bad_sessions_are_refused_without_showing_them(
    tmp_path: Path, session_source: None, content: str, complaint: str
) -> None:
    path = tmp_path / "shops.csv"
    path.write_text(content)
    for read_it in (lambda: read_shops(str(path), "top", {}, SETTINGS), lambda: read_sessions(str(path), "top")):
        with pytest.raises(UsageError) as refused:
            read_it()
        assert complaint in str(refused.value)
        assert "canary" not in str(refused.value).lower()


def test_sessions_of_many_shops_are_read_alone(tmp_path: Path, session_source: None) -> None:
    path = tmp_path / "sessions.csv"
    path.write_text(f"session,shop\n{SESSION},b1\nother,b2\n")
    assert read_sessions(str(path), "top") == {("top", "b1"): SESSION, ("top", "b2"): "other"}
    for content, complaint in {
        "shop,session\nb1,\n": "line 2: the session is empty",
        "shop,session,sort\nb1,x,up\n": "line 2: unknown column 'sort'; columns: shop, session, source",
        f"session\n{SESSION}\n": "line 1: the session is empty",
        "shop,session\n": "no shops in it",
    }.items():
        path.write_text(content)
        with pytest.raises(UsageError, match=complaint):
            read_sessions(str(path), "top")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("24h", 86400), ("7d", 604800), ("30s", 30), ("2w", 1209600)]
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1.5h", "9999999d", "1y"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no duration"):
        parse_duration(text)
