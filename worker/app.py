"""The Celery application: `python -m worker`, or `celery -A worker.app worker`, is a shopcrawl worker."""

from celery import Celery
from celery.signals import setup_logging, worker_init
from kombu.entity import Queue

from models import metrics
from models.broker import celery_config
from models.errors import ShopcrawlError
from models.logs import configure_logging
from models.messages import CLIENT_QUEUE, QUEUE, URGENT_QUEUE
from models.settings import load_settings
from worker import transport

try:
    settings = load_settings()
    config = celery_config(settings)
except ShopcrawlError as error:
    raise SystemExit(f"shopcrawl: {error}") from None
transport.install()
app = Celery("shopcrawl", include=["worker.tasks"])
app.conf.update(config)
app.events.dispatcher_cls = "worker.events:Dispatcher"
app.conf.task_queues = [Queue(name) for name in (URGENT_QUEUE, CLIENT_QUEUE, QUEUE)]  # type: ignore[no-untyped-call]


@setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: object) -> None:
    configure_logging(settings)


@worker_init.connect  # type: ignore[untyped-decorator]
def _serve_metrics(**_: object) -> None:
    metrics.start(settings)
