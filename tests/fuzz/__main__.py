"""Lets Atheris search for an answer that a source's decoder cannot handle: `python -m tests.fuzz SECONDS [SOURCE]`."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

STATUSES = (200, 200, 200, 404, 500, 503)
LONGEST = 8_192  # bytes of an answer
FOLDER = Path("build/fuzz")


def main(seconds: int, source: str) -> int:
    """Fuzz for so long; 0, or another number if an input broke the decoder, which is then kept in build/fuzz.

    What reached new code is kept as well, and a later run starts from there.
    """
    atheris: Any = import_module("atheris")  # no dependency: it has wheels for few platforms
    with atheris.instrument_imports(include=["worker.sources"]):
        judge = import_module("tests.fuzz.judge")
        judge.survives(source, b"")  # loads the adapter

    def attempt(data: bytes) -> None:
        """The first byte chooses the status, the others are the body."""
        judge.survives(source, data[1:], STATUSES[(data or b"\0")[0] % len(STATUSES)])

    corpus = FOLDER / source
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(_seeds(source)):
        (corpus / f"seed-{number}").write_bytes(b"\0" + seed)
    bounds = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=1024"]
    shown = [f"-artifact_prefix={FOLDER}/", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *bounds, *shown, str(corpus)], attempt)
    atheris.Fuzz()
    return 0


def _seeds(source: str) -> Iterator[bytes]:
    pages = import_module(f"tests.{source}_pages")
    yield pages.WHOLE
    if source == "top":
        wrapped = {pages.WRAPPER: {**pages.PAGE, "items": {"item": [pages.ROW]}}}
        ban = pages.refused(7, "accesscontrol.limited-by-app-access-count", "This ban will last for 2 more seconds")
        for tree in (wrapped, ban, pages.refused(31), pages.refused(50, "isv.invalid-parameter:fields")):
            yield json.dumps(tree).encode()
            yield pages.xml(tree)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "top"))
