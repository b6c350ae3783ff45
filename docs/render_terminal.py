"""Run the demo and draw what its terminal shows: `python docs/render_terminal.py` writes docs/terminal.svg."""

import io
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.padding import Padding
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from models.logs import configure_logging
from models.settings import load_settings
from producer import run
from producer.console.progress import View, block
from producer.demo import run_demo

PICTURE = Path(__file__).parent / "terminal.svg"
WIDTH = 100
SHOWN_AT = 0.3  # share of the pages from which on the live block is drawn, once
COLOURS = [(232, 104, 113), (126, 200, 114), (229, 192, 100), (97, 165, 240), (198, 120, 221), (86, 190, 200)]
THEME = TerminalTheme(
    (22, 24, 29),
    (214, 218, 224),
    [(40, 44, 52), *COLOURS, (171, 178, 191)],
    [(92, 99, 112), *COLOURS, (255, 255, 255)],
)
# rich's own frame fetches a web font; a README's picture must not fetch anything.
FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
  aria-label="Terminal: make demo crawls 1,000 simulated shops and checks the result">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
.{unique_id}-title {{ display: none; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""

watch: Any = import_module("producer.console.watch")  # the package has a function of the same name


class OneFrame(watch.Silent):  # type: ignore[misc]
    """Prints the live block a single time, when the crawl is well under way."""

    def __init__(self, console: Console, *, quiet: bool) -> None:  # noqa: ARG002 (as display_for is called)
        self._console, self._printed = console, False

    def show(self, view: View) -> None:
        """Print the view if it is the one."""
        pages = view.status.pages
        if not self._printed and not view.status.is_finished and pages.finished >= SHOWN_AT * pages.known > 0:
            self._printed = True
            self._console.print(Padding(block(view, self._console.width - 2), (1, 1, 0, 1)))


def record(console: Console, folder: str) -> int:
    """Run the demo in a folder; the console shows it under the name that a first user sees. Returns its exit code."""

    def shown(url: str) -> str:
        return "shopcrawl-data" + url.partition(folder)[2]

    with (
        patch.object(watch, "display_for", OneFrame),
        patch.object(run, "shown_location", shown),
        patch.dict(os.environ, {"SHOPCRAWL_DATA_DIR": folder}),
    ):
        configure_logging(load_settings())
        return run_demo(console)


def main() -> int:
    """Record and draw; returns the demo's exit code."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bright_black"), ("make demo", "bold")))
    with tempfile.TemporaryDirectory() as folder:
        code = record(console, folder)
    drawn = console.export_svg(title="", theme=THEME, code_format=FRAME, unique_id="t")
    drawn = drawn.replace(folder, "shopcrawl-data")
    PICTURE.write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n", encoding="utf-8")
    sys.stdout.write(f"{PICTURE.name}: {PICTURE.stat().st_size:,} bytes\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
