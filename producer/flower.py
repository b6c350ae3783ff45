"""How Flower, the Celery monitor, is started: never open to the network without a password, and without our tokens."""

import secrets
import sys

from models.addresses import is_loopback
from models.errors import UsageError
from models.settings import Settings

MAX_TASKS = 10_000  # Flower's own 100,000 cost it memory and make its pages slow
# What it does not know, it cannot show.
NOT_FOR_FLOWER = ("DATABASE_URL", "PROXY", "TMAPI_TOKENS", "TOP_APP_SECRET", "SECRET_KEY", "FLOWER_PASSWORD")


def flower_command(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """The command line of Flower, which holds no secret, and the environment variables that go with it.

    With a user and a password operators may act: grow and shrink pools, revoke, ask for a re-crawl. Without them Flower
    stays on loopback and read-only, its API closed. Raises UsageError for credentials that are missing or that Flower
    would misread.
    """
    credentials = _credentials(settings)
    options = {
        "address": settings.flower_host,
        "port": settings.flower_port,
        "max_tasks": MAX_TASKS,
        "persistent": False,  # its state file is a pickle
        "auto_refresh": True,
        "enable_events": settings.task_events != "never",
        "read_only": credentials is None,
        "logging": settings.log_level.lower(),
    }
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "flower"]
    command += [f"--{name}={value}" for name, value in options.items()]
    variables = {f"SHOPCRAWL_{name}": "" for name in NOT_FOR_FLOWER}
    variables |= {"FLOWER_UNAUTHENTICATED_API": "false", "FLOWER_COOKIE_SECRET": secrets.token_urlsafe(48)}
    if credentials is not None:
        variables["FLOWER_BASIC_AUTH"] = credentials
    return command, variables


def _credentials(settings: Settings) -> str | None:
    """`user:password`, or None where Flower may go without. Raises UsageError."""
    user, secret = settings.flower_user, settings.flower_password
    if user is None and secret is None:
        if not is_loopback(settings.flower_host):
            raise UsageError(
                f"Flower on {settings.flower_host or 'every address'} needs SHOPCRAWL_FLOWER_USER and "
                "SHOPCRAWL_FLOWER_PASSWORD; without them it listens on 127.0.0.1 only"
            )
        return None
    if user is None or secret is None:
        raise UsageError("set both SHOPCRAWL_FLOWER_USER and SHOPCRAWL_FLOWER_PASSWORD, or neither")
    password = secret.get_secret_value()
    _check("SHOPCRAWL_FLOWER_USER", user, forbidden=",:")
    _check("SHOPCRAWL_FLOWER_PASSWORD", password, forbidden=",")
    return f"{user}:{password}"


def _check(name: str, value: str, *, forbidden: str) -> None:
    """Flower takes a comma for the end of one credential and compares plain ASCII only."""
    if not value.isascii() or not value.isprintable() or any(sign in value for sign in forbidden):
        raise UsageError(f"{name} may hold printable ASCII characters only and none of {forbidden}")
