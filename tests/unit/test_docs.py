"""The documentation says nothing that the code contradicts."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
from prometheus_client.metrics import MetricWrapperBase
from typer.core import TyperGroup
from typer.main import get_command

from models import errors
from models.errors import FetchError
from models.settings import Settings
from producer import metrics as producer_metrics
from producer.cli import app
from worker import metrics as worker_metrics

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("tests/simulator/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    )
    if ".venv" not in path.parts
)
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?<![\w/.-])shopcrawl[ ]([^`\n|]*)")
QUOTED = re.compile(r"```\w+\n# (\S+\.\w+)\n(.*?)```", re.DOTALL)
CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`", re.DOTALL)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings get."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> Iterator[list[str]]:
    """The words after `shopcrawl` in each piece of code, up to a comment, pipe or redirection."""
    for block, inline in CODE.findall(text):
        for words in COMMAND.findall(block or inline):
            lexer = shlex.shlex(re.split(r"\s#|[<>;…]|\s{2,}|\]", words)[0], posix=True, punctuation_chars=False)
            lexer.whitespace_split = True
            yield list(lexer)


def complaint(words: list[str]) -> str | None:
    """What is wrong with a command line: an unknown command or option."""
    command: Any = get_command(app)
    left = list(words)
    while left and isinstance(command, TyperGroup):
        word = left.pop(0)
        if word.startswith("--"):
            if word not in {"--help", *_options(command)}:
                return f"unknown option {word}"
            continue
        if word not in command.commands:
            return f"unknown command {word}"
        command = command.commands[word]
    passes_on = command.context_settings.get("ignore_unknown_options")
    unknown = [word for word in left if word.startswith("--") and word.partition("=")[0] not in _options(command)]
    return f"unknown option {unknown[0]}" if unknown and not passes_on else None


def _options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def test_the_settings_table_and_the_diagram_are_up_to_date() -> None:
    outdated = [str(path.relative_to(ROOT)) for path in GENERATE["outdated"]()]
    assert not outdated, "run: python docs/generate.py"


def test_every_setting_is_described_and_stands_in_the_readme() -> None:
    text = page("README.md")
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `SHOPCRAWL_{name.upper()}` |" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    here = ROOT / name
    for target in LINK.findall(FENCED.sub("", page(name))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        path = (here.parent / file).resolve() if file else here
        assert path.exists(), f"{name}: {target}"
        assert path.is_relative_to(ROOT), f"{name}: {target}"
        assert not anchor or anchor in anchors(path), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_option_shown_exists(name: str) -> None:
    wrong = {" ".join(words): fault for words in commands(page(name)) if words and (fault := complaint(words))}
    assert not wrong


def test_every_option_that_the_readme_explains_exists() -> None:
    def options(command: Any) -> set[str]:
        inner = command.commands.values() if isinstance(command, TyperGroup) else ()
        return _options(command).union(*map(options, inner))

    explained = set(re.findall(r"`(--[a-z-]+)", page("README.md")))
    assert explained
    assert explained <= options(get_command(app))


def test_the_readme_shows_every_command() -> None:
    def leaves(command: Any, path: str) -> Iterator[str]:
        if isinstance(command, TyperGroup):
            for name, inner in command.commands.items():
                yield from leaves(inner, f"{path} {name}")
        else:
            yield path

    text = page("README.md")
    missing = [path for path in leaves(get_command(app), "shopcrawl") if f"`{path}" not in text]
    assert not missing


@pytest.mark.parametrize("words", [["crawll"], ["crawl", "--no-such"], ["export", "rows"], ["--loud", "crawl"]])
def test_a_wrong_command_line_is_noticed(words: list[str]) -> None:
    assert complaint(words)


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_named_is_a_setting(name: str) -> None:
    known = {f"SHOPCRAWL_{field.upper()}" for field in Settings.model_fields}
    assert set(re.findall(r"SHOPCRAWL_[A-Z_]*[A-Z]", page(name))) <= known


def metric_names(*modules: ModuleType) -> set[str]:
    """The names under which the metrics of these modules are scraped."""
    metrics = [value for module in modules for value in vars(module).values() if isinstance(value, MetricWrapperBase)]
    described = [description for metric in metrics for description in metric.describe()]
    return {f"{each.name}_total" if each.type == "counter" else each.name for each in described}


def test_the_runbook_explains_every_metric_and_no_other() -> None:
    table = page("docs/runbook.md").split("## Metrics")[1].split("\n## ")[0]
    explained = set(re.findall(r"^\| `(shopcrawl_\w+)`", table, re.MULTILINE))
    assert explained == metric_names(producer_metrics, worker_metrics)


def missing_quotes(text: str) -> list[str]:
    """Pieces of code blocks that begin with a file's name and are not in that file, in this order; `# …` is a gap."""
    missing = []
    for file, block in QUOTED.findall(text):
        rest = page(file)
        for piece in block.split("# …\n"):
            _, found, rest = rest.partition(piece)
            missing += [] if found else [f"{file}: {piece}"]
    return missing


def test_the_code_quoted_from_our_sources_is_still_in_them() -> None:
    text = page("docs/adding-a-source.md")
    assert len(QUOTED.findall(text)) == text.count("```python") + text.count("```toml") >= 6
    assert missing_quotes(text) == []


@pytest.mark.parametrize(
    "block", ["class NoSuchSource(Source):\n", 'name = "top"\n# …\nMETHOD = "alibaba.tjb.items.inventory.get"\n']
)
def test_a_quote_that_is_not_in_its_file_or_out_of_order_is_noticed(block: str) -> None:
    assert len(missing_quotes(f"```python\n# worker/sources/taobao.py\n{block}```")) == 1


def test_the_page_on_sources_explains_every_error_to_raise_and_no_other() -> None:
    table = page("docs/adding-a-source.md").split("## 6. ")[1].split("\n## ")[0]
    explained = re.findall(r"^\| `(\w+Error)`", table, re.MULTILINE)
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, FetchError)}
    assert len(explained) == len(set(explained))
    assert set(explained) == kinds - {"FetchError"}


def test_every_decision_is_listed_once_under_its_number() -> None:
    listed = re.findall(r"^(\d+)\. \[[^\]]+\]\((\d{4})-[\w-]+\.md\)$", page("docs/adr/README.md"), re.MULTILINE)
    files = sorted(path.name[:4] for path in (ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [f"{int(number):04}" for number, _ in listed] == [name for _, name in listed] == files


def test_the_picture_of_the_terminal_is_small_and_fetches_nothing() -> None:
    drawn = page("docs/terminal.svg")
    assert len(drawn.encode()) < 60_000
    assert not re.search(r"url\(['\"]?https?:|<image|<script|href=", drawn)
