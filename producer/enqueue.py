"""The only sender of messages: pages that the ledger has marked as sent go to Redis through Celery."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from celery import Celery

from models.broker import celery_config
from models.messages import TASK_NAME, PageTask, queue_for
from models.settings import Settings


class Sender:
    """Holds one broker connection; blocking, so call it from a thread."""

    def __init__(self, settings: Settings) -> None:
        self._app = Celery("shopcrawl-producer", set_as_current=False)
        self._app.conf.update(celery_config(settings))
        self._producer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, tasks: Sequence[PageTask]) -> None:
        """Send one message for each page. Raises the broker's connection errors; pages not sent are found missing later."""
        if self._producer is None:
            connection = self._app.connection_for_write()
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        try:
            for task in tasks:
                # By queue name alone: Redis may lose an exchange's bindings, and messages to it silently vanish.
                self._app.send_task(
                    TASK_NAME,
                    kwargs=task.kwargs(),
                    task_id=task.message_id,
                    queue=queue_for(task.priority),
                    producer=self._producer,
                    retry=False,
                    argsrepr="()",
                    kwargsrepr=readable(task),
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection; the next `send` opens a new one."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.connection.release()


def readable(task: PageTask) -> str:
    """What Flower and the log show of a message."""
    return f"{task.source} {task.shop} page {task.page} (crawl {task.crawl_id}, sending {task.fence})"
