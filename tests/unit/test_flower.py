"""Flower is started closed to strangers, and knows no secret that it could show."""

from pathlib import Path
from typing import Any

import pytest
from flower.options import default_options
from pydantic import SecretStr

from models.errors import UsageError
from models.settings import Settings
from producer.flower import flower_command
from producer.hosting.local import environment

PASSWORD = "canary-pass:word 7"
TOKEN = "canary-token"


def options(command: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in command[command.index("flower") + 1 :])


def settings(**values: Any) -> Settings:
    return Settings(**values)


def protected(**values: Any) -> Settings:
    return settings(flower_user="operator", flower_password=SecretStr(PASSWORD), **values)


def test_the_password_travels_in_the_environment_and_never_on_the_command_line() -> None:
    command, variables = flower_command(protected(flower_host="0.0.0.0"))
    assert variables["FLOWER_BASIC_AUTH"] == f"operator:{PASSWORD}"
    assert not any(PASSWORD in word for word in command)


def test_with_a_password_operators_may_act_on_the_fleet() -> None:
    command, _ = flower_command(protected(flower_host="0.0.0.0", flower_port=8123))
    assert options(command) == {
        "address": "0.0.0.0",
        "port": "8123",
        "max_tasks": "10000",
        "persistent": "False",
        "auto_refresh": "True",
        "enable_events": "True",
        "read_only": "False",
        "logging": "info",
    }


@pytest.mark.parametrize(("events", "asks"), [("auto", "True"), ("always", "True"), ("never", "False")])
def test_it_asks_workers_for_task_events_unless_told_not_to(events: str, asks: str) -> None:
    command, _ = flower_command(settings(task_events=events))
    assert options(command)["enable_events"] == asks


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_without_a_password_it_is_read_only_and_its_api_closed(host: str) -> None:
    command, variables = flower_command(settings(flower_host=host))
    assert options(command)["read_only"] == "True"
    assert "FLOWER_BASIC_AUTH" not in variables
    assert variables["FLOWER_UNAUTHENTICATED_API"] == "false"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "flower.example.org", "localhost.example.org"])
def test_off_loopback_without_a_password_it_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="SHOPCRAWL_FLOWER_USER and SHOPCRAWL_FLOWER_PASSWORD"):
        flower_command(settings(flower_host=host))


@pytest.mark.parametrize("half", [{"flower_user": "operator"}, {"flower_password": SecretStr(PASSWORD)}])
def test_half_a_credential_is_refused_even_on_loopback(half: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="both") as refusal:
        flower_command(settings(**half))
    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize(
    ("user", "password"), [("a,b", "x"), ("a:b", "x"), ("a", "x,y"), ("a", "pässword"), ("a", "x\ny")]
)
def test_credentials_that_flower_would_misread_are_refused_without_being_quoted(user: str, password: str) -> None:
    with pytest.raises(UsageError) as refusal:
        flower_command(settings(flower_user=user, flower_password=SecretStr(password)))
    assert "printable ASCII" in str(refusal.value)
    assert len(password) == 1 or password not in str(refusal.value)


def test_each_start_has_a_cookie_secret_of_its_own() -> None:
    first, second = (flower_command(settings())[1]["FLOWER_COOKIE_SECRET"] for _ in range(2))
    assert first != second
    assert len(first) >= 48


def test_what_flower_does_not_need_is_kept_from_it(tmp_path: Path) -> None:
    given = protected(
        data_dir=tmp_path,
        tmapi_tokens=(SecretStr(TOKEN),),
        database_url=SecretStr("postgresql://u:canary-database@h/d"),
        redis_url=SecretStr("redis://h/0"),
        proxy=SecretStr("http://u:canary-proxy@h"),
    )
    _, variables = flower_command(given)
    process = {**environment(given), **variables}
    assert process["SHOPCRAWL_REDIS_URL"] == "redis://h/0"
    assert [name for name, value in process.items() if "canary" in value] == ["FLOWER_BASIC_AUTH"]


def test_flower_still_has_every_option_that_is_set() -> None:
    command, variables = flower_command(protected())
    settable = {name.removeprefix("FLOWER_").lower() for name in variables if name.startswith("FLOWER_")}
    assert {*options(command), *settable} - {"unauthenticated_api"} <= {
        name.replace("-", "_") for name in default_options
    }
