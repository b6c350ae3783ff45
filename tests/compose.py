"""Reads docker-compose.yml the way docker compose does, as far as this file makes use of it."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE_FILE = ROOT / "docker-compose.yml"

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::-([^}]*))?\})")


def load_compose(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file with `variables` put in; settings handed on but not set are left out. KeyError if one is missing."""
    given = variables or {}
    found: dict[str, Any] = _put_in(yaml.safe_load(COMPOSE_FILE.read_text()), given)
    for service in found["services"].values():
        environment = service.get("environment", {})
        handed_on = {name: given.get(name) if value is None else value for name, value in environment.items()}
        service["environment"] = {name: value for name, value in handed_on.items() if value is not None}
    return found


def make_secrets(folder: Path, tokens: str = "", app_secret: str = "") -> subprocess.CompletedProcess[str]:
    """Run docker/make-secrets, with `tokens` and `app_secret` where they are not empty."""
    given = {"SHOPCRAWL_TMAPI_TOKENS": tokens, "SHOPCRAWL_TOP_APP_SECRET": app_secret}
    variables = {"PATH": os.environ["PATH"]} | {name: value for name, value in given.items() if value}
    command = [str(ROOT / "docker/make-secrets"), str(folder)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def _put_in(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _text(match, variables), value)
    if isinstance(value, list):
        return [_put_in(each, variables) for each in value]
    if isinstance(value, dict):
        return {name: _put_in(each, variables) for name, each in value.items()}
    return value


def _text(match: re.Match[str], variables: Mapping[str, str]) -> str:
    name, default = match.groups()
    if name is None:
        return "$"
    return variables.get(name) or default if default is not None else variables[name]
