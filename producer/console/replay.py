"""What a replay did, for a terminal."""

from typing import TYPE_CHECKING

from rich.console import Console

from producer.console.text import number, plain

if TYPE_CHECKING:
    from producer.archive.replay import Replayed

SHOWN = 20


def print_replayed(console: Console, found: "Replayed", *, dry_run: bool) -> None:
    """Print what was read, what that changed, and what does not decode."""
    lines = [f"{number(found.pages)} archived pages with {number(found.sightings)} items read, no call made"]
    if found.differences:
        parts = {
            "new": found.new,
            "changed": found.changed,
            "corrected in the past": found.corrected,
            "gone": found.gone,
        }
        told = ", ".join(f"{number(count)} {name}" for name, count in parts.items() if count)
        lines.append(f"the store {'would get' if dry_run else 'got'}: {told}")
    else:
        lines.append("the store agrees with them: nothing changed")
    if found.recovered:
        lines.append(f"{number(found.recovered)} pages that had been given up are readable today; their verdicts stay")
    if found.unreadable:
        lines.append(f"{number(found.unreadable)} pages that had been given up are no more readable today")
    if found.failed:
        lines.append(f"{number(found.failed)} pages that were stored do not decode today:")
    lines += [
        f"  {each.source} {plain(each.shop, 60)} page {each.page} of crawl {each.crawl}: {plain(each.reason)}"
        for each in found.failures[:SHOWN]
    ]
    if found.failed > SHOWN:
        lines.append(f"  and {number(found.failed - SHOWN)} more; --json names {number(len(found.failures))}")
    for line in lines:
        console.print(line, highlight=False, markup=False)
