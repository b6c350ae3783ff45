"""docker-compose.yml is valid, and gives nothing away: to the network, to a broken-in container, to a reader."""

import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from models import settings as settings_module
from models.settings import Settings, load_settings
from models.vault import Vault
from tests.compose import COMPOSE_FILE, ROOT, load_compose, make_secrets

COMPOSE = load_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())
ONE_SHOT = {"migrate", "demo"}


def test_the_file_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)]
    verdict = subprocess.run(command, capture_output=True, text=True, check=False)
    assert verdict.returncode == 0, verdict.stdout


@each_service
def test_a_container_can_change_nothing_and_gain_no_rights(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"cap_add", "privileged", "pid", "ipc", "network_mode", "userns_mode", "devices"}
    user, group = (int(part) for part in service["user"].split(":"))
    assert user > 0
    assert group > 0


@each_service
def test_a_container_has_limits_and_writes_to_volumes_and_memory_alone(service: dict[str, Any]) -> None:
    assert 0 < service["pids_limit"] <= 512
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert all("size=" in mount for mount in service["tmpfs"])
    for mount in service.get("volumes", []):
        assert mount.split(":")[0] in COMPOSE["volumes"]


def test_only_flower_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"flower": ["127.0.0.1:5555:5555"]}


def test_only_what_calls_apis_or_webhooks_reaches_the_internet_and_stores_are_reached_from_inside_alone() -> None:
    networks = COMPOSE["networks"]
    assert networks["backend"] == {"internal": True}
    outside = {name for name, service in SERVICES.items() if "egress" in service["networks"]}
    assert outside == {"worker", "producer"}
    assert {name for name, service in SERVICES.items() if service["networks"] == ["backend"]} == SERVICES.keys() - {
        *outside,
        "flower",
    }


@each_service
def test_no_secret_stands_in_the_file(service: dict[str, Any]) -> None:
    for name, value in service["environment"].items():
        if re.search("PASSWORD|TOKEN|SECRET|URL", name):
            assert name.endswith("_FILE")
            assert value.startswith("/run/secrets/")
    assert not re.search(r"://[^/\s]*:[^/\s]*@", str(service))


def test_every_secret_is_a_file_that_git_and_the_image_never_see(tmp_path: Path) -> None:
    for secret in COMPOSE["secrets"].values():
        assert list(secret) == ["file"]
        assert Path(secret["file"]).parent == Path("secrets")
    make_secrets(tmp_path / "secrets", "canary-token")
    assert (tmp_path / "secrets/.gitignore").read_text() == "*\n"
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    assert rules[0] == "*"
    assert not any(rule.startswith(("!secrets", "!.env", "!docker")) for rule in rules)


def test_each_service_has_the_secrets_it_needs_and_no_other() -> None:
    needed = {name: set(service.get("secrets", [])) for name, service in SERVICES.items()}
    demo = {"shopcrawl_database_url", "shopcrawl_redis_url", "shopcrawl_tmapi_tokens"}
    fleet = demo | {"shopcrawl_top_app_secret", "shopcrawl_secret_key"}
    assert needed == {
        "redis": {"redis_users"},
        "postgres": {"postgres_superuser_password", "postgres_password"},
        "migrate": {"shopcrawl_database_url"},
        "producer": fleet,
        "worker": fleet,
        "flower": {"shopcrawl_redis_url", "shopcrawl_flower_password"},
        "simulator": set(),
        "demo": demo,
    }


@each_service
def test_images_are_pinned_by_version(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z-]+:\d+\.\d+(\.\d+)?(-[a-z]+)?", service["image"])


def test_the_base_image_is_pinned_by_version() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+$", dockerfile, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON_IMAGE}", "build", "base"}
    assert dockerfile.count("pip install") == dockerfile.count("--require-hashes") + dockerfile.count("--no-index")


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_a_service_is_restarted_watched_and_not_waited_for_in_vain(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", ["producer", "worker"])
def test_the_fleet_starts_once_its_servers_answer_and_the_schema_is_there(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "redis": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
    }


def test_workers_can_be_scaled_and_have_the_time_to_finish_their_pages() -> None:
    worker = SERVICES["worker"]
    assert not worker.keys() & {"container_name", "ports", "hostname"}
    assert worker["stop_grace_period"] == "40s"


def test_the_demo_leaves_the_real_fleet_alone() -> None:
    given = dict(line.split("=", 1) for line in (ROOT / "docker/demo.env").read_text().splitlines() if line[0] != "#")
    assert given["COMPOSE_PROJECT_NAME"] != COMPOSE["name"]
    in_profile = {name for name, service in SERVICES.items() if service.get("profiles") == [given["COMPOSE_PROFILES"]]}
    assert in_profile == {"simulator", "demo"}
    worker = load_compose(given)["services"]["worker"]
    assert worker["environment"]["SHOPCRAWL_TMAPI_BASE_URL"] == "http://simulator:8080"
    assert "SHOPCRAWL_TMAPI_BASE_URL" not in SERVICES["worker"]["environment"]


def test_only_real_settings_are_handed_on() -> None:
    text = re.sub(r"^ *#.*", "", COMPOSE_FILE.read_text(), flags=re.MULTILINE)
    handed_on = {name.lower() for name in re.findall(r"SHOPCRAWL_(\w+)", text)}
    assert handed_on <= Settings.model_fields.keys()
    of_sources = {name for name in Settings.model_fields if name.startswith(("tmapi_", "top_"))}
    assert of_sources - handed_on == {"tmapi_tokens", "top_app_secret"}, "these are secret files"
    example = re.findall(r"^(?:# )?SHOPCRAWL_(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert {name.lower() for name in example} <= Settings.model_fields.keys()


def test_the_queue_is_kept_and_never_evicted() -> None:
    lines = (ROOT / "docker/redis.conf").read_text().splitlines()
    conf = dict(shlex.split(line) for line in lines if line and line[0] != "#")
    assert conf["appendonly"] == "yes"
    assert conf["appendfsync"] == "everysec"
    assert conf["maxmemory-policy"] == "noeviction"
    assert conf["maxmemory"] == "512mb"
    assert conf["aclfile"] == "/run/secrets/redis_users"


def test_made_secrets_are_random_private_and_all_that_the_file_names(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        assert make_secrets(folder, "canary-token", "canary-secret").returncode == 0
    wanted = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    assert {path.name for path in first.iterdir()} == wanted | {"redis_password", ".gitignore"}
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert Fernet((first / "shopcrawl_secret_key").read_text().strip())
    for name in wanted - {"shopcrawl_tmapi_tokens", "shopcrawl_top_app_secret"}:
        assert re.search("[0-9a-f]{48}|[0-9A-Za-z_-]{43}=", (first / name).read_text())
        assert (first / name).read_text() != (second / name).read_text()


def test_made_secrets_are_kept_when_made_again(tmp_path: Path) -> None:
    make_secrets(tmp_path / "s", "one")
    before = {path.name: path.read_text() for path in (tmp_path / "s").iterdir()}
    assert make_secrets(tmp_path / "s", "two").returncode == 0
    assert {path.name: path.read_text() for path in (tmp_path / "s").iterdir()} == before


def test_without_any_credential_no_secrets_are_made(tmp_path: Path) -> None:
    refused = make_secrets(tmp_path / "s")
    assert refused.returncode != 0
    assert "SHOPCRAWL_TMAPI_TOKENS" in refused.stderr
    assert "SHOPCRAWL_TOP_APP_SECRET" in refused.stderr
    assert not (tmp_path / "s").exists()


def test_a_source_can_be_added_to_secrets_that_were_made_for_the_other(tmp_path: Path) -> None:
    def credentials() -> tuple[str, str]:
        names = ("shopcrawl_tmapi_tokens", "shopcrawl_top_app_secret")
        return (tmp_path / "s" / names[0]).read_text(), (tmp_path / "s" / names[1]).read_text()

    assert make_secrets(tmp_path / "s", app_secret="canary-secret").returncode == 0
    password = (tmp_path / "s/postgres_password").read_text()
    assert credentials() == ("", "canary-secret")
    assert make_secrets(tmp_path / "s", "canary-token").returncode == 0
    assert credentials() == ("canary-token", "canary-secret")
    assert make_secrets(tmp_path / "s").returncode == 0, "what a newer version needs besides is added"
    assert (tmp_path / "s/postgres_password").read_text() == password


def test_settings_are_read_from_the_secret_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_secrets(tmp_path / "s", "first-token, second-token\n", "canary-secret")
    monkeypatch.setattr(settings_module, "SECRETS_DIR", tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    password = (tmp_path / "s/postgres_password").read_text()
    assert settings.database == f"postgresql+asyncpg://shopcrawl:{password}@postgres:5432/shopcrawl"
    assert [token.get_secret_value() for token in settings.tmapi_tokens] == ["first-token", "second-token"]
    assert settings.top_app_secret is not None
    assert settings.top_app_secret.get_secret_value() == "canary-secret"
    assert Vault(settings).seal(["canary-session"])
    assert not list(tmp_path.rglob("secret.key")), "the key is the fleet's own"
    assert settings.flower_password is not None
    assert settings.flower_password.get_secret_value() == (tmp_path / "s/shopcrawl_flower_password").read_text()
    redis = (tmp_path / "s/redis_password").read_text()
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == f"redis://shopcrawl:{redis}@redis:6379/0"
