"""The hands of shopcrawl: Celery workers that fetch one page per task, thousands at a time per process."""
