"""`python -m worker`: the same worker as `celery -A worker.app worker`, without the other commands of Celery's."""

import sys

if __name__ == "__main__":
    # What Celery and structlog load if it is there, for colours and formats that no worker uses: 4 MB.
    sys.modules["pygments"] = sys.modules["rich"] = sys.modules["yaml"] = None  # type: ignore[assignment]

from celery.bin.base import CLIContext
from celery.bin.worker import worker

from worker.app import app

if __name__ == "__main__":
    for name in ("pygments", "rich", "yaml"):
        del sys.modules[name]  # the adapter of a source may want it


def main() -> None:
    """Run `celery worker` itself with the options of this command line; ends the process with its exit code.

    Celery's whole command line would load every command and plug-in, Flower's too: 12 MB in each worker.
    """
    # At SIGHUP Celery starts these words anew; by its path, the file would put its folder on the module path.
    sys.argv[:1] = ["-m", "worker"]
    context = CLIContext(app=app, no_color=True, workdir=None, quiet=False)
    worker.main(sys.argv[2:], prog_name="python -m worker", auto_envvar_prefix="CELERY_WORKER", obj=context)


if __name__ == "__main__":
    main()
