"""How Celery is set up, for the producer that sends and the workers that receive."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

from models.errors import UsageError
from models.messages import QUEUE, RECRAWL_TASK_NAME, TASK_NAME, URGENT_QUEUE
from models.settings import Settings

VISIBILITY_TIMEOUT = 900  # longer than any page may take; lost work is found much sooner by the reconciler
ACCEPTED_SCHEMES = ("redis", "rediss", "unix")


def redis_url(settings: Settings) -> str:
    """The Redis URL as redis-py reads it. Raises UsageError if none is set or it is not one."""
    if settings.redis_url is None:
        raise UsageError("SHOPCRAWL_REDIS_URL is not set: this command needs the Redis of a running crawl")
    url = settings.redis_url.get_secret_value()
    try:
        parts = urlsplit(url)
        _ = parts.port  # reading it checks it
    except ValueError:
        raise UsageError("SHOPCRAWL_REDIS_URL is not a URL: check its host and port") from None
    if parts.scheme not in ACCEPTED_SCHEMES:
        raise UsageError("SHOPCRAWL_REDIS_URL must start with redis://, rediss:// or unix://")
    return url


def broker_url(url: str) -> str:
    """The same Redis in kombu's spelling: `unix:///path?db=0` becomes `redis+socket:///path?virtual_host=0`."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.path}?virtual_host={database}"


def celery_config(settings: Settings) -> dict[str, Any]:
    """Celery's settings; the reason stands beside each that is not Celery's default."""
    return {
        "broker_url": broker_url(redis_url(settings)),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # the default gives up after 100 tries
        "broker_channel_error_retry": True,  # survives a full or read-only Redis
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 3,
            "socket_timeout": 15,  # the default waits for ever
            "socket_connect_timeout": 5,
            "socket_keepalive": urlsplit(redis_url(settings)).scheme != "unix",
            "health_check_interval": 10,
            "priority_steps": [0],  # one Redis list for each queue; urgency has a queue of its own
            "queue_order_strategy": "priority",  # the first queue is emptied first
        },
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,  # the ledger is the truth
        "task_ignore_result": True,
        "task_acks_late": True,  # acknowledge after the commit
        "task_reject_on_worker_lost": True,
        "task_publish_retry": True,  # a message sent twice is fenced
        "task_default_queue": QUEUE,
        "task_create_missing_queues": True,
        "task_send_sent_event": False,
        "worker_send_task_events": settings.task_events == "always",  # they cost a twentieth of a worker's CPU
        "worker_prefetch_multiplier": 1,  # unacknowledged messages = pages in flight
        "worker_concurrency": settings.concurrency,
        "worker_pool": "worker.pool:AsyncioPool",
        "worker_enable_remote_control": True,  # also notices a lost Redis while every slot is busy
        "worker_cancel_long_running_tasks_on_connection_loss": True,  # their messages come again
        "worker_soft_shutdown_timeout": 20,
        "worker_enable_soft_shutdown_on_idle": False,
        "worker_eta_task_limit": 100_000,  # also caps the prefetch: far above any concurrency
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "task_routes": {RECRAWL_TASK_NAME: {"queue": URGENT_QUEUE}, TASK_NAME: {"queue": QUEUE}},
    }
