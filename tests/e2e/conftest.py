"""Fixtures that several end-to-end tests share: one finished crawl, and copies of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.crawled import Crawled, finished_crawl


@pytest.fixture(scope="session")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crawled]:
    """A finished crawl, to be read only."""
    with finished_crawl(tmp_path_factory.mktemp("crawled")) as crawl:
        yield crawl


@pytest.fixture
def copy(crawled: Crawled, tmp_path: Path) -> Path:
    """A copy of the finished crawl's data folder, to be changed."""
    return Path(shutil.copytree(crawled.fleet.data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("redis")))
