"""What a crawl has cost and may still cost, in words."""

from rich.text import Text

from models.status import CrawlStatus
from producer.console.text import joined, number, rate, share
from producer.outlook import Outlook


def cost_line(status: CrawlStatus, currency: str) -> Text:
    """Money spent, what is left of the budget, and unknown calls; empty if there is nothing to say."""
    budget, parts = status.budget, list[str | Text]()
    if status.spent is not None:
        parts.append(f"{status.spent:f} {currency} spent".replace("  ", " "))
    if budget is not None and budget.max_calls is not None:
        parts.append(f"{number(budget.calls_left or 0)} of {number(budget.max_calls)} calls left")
    if budget is not None and budget.max_spend is not None:
        parts.append(f"{budget.spend_left:f} of {budget.max_spend:f} {currency} left".replace("  ", " "))
    if status.unknown_calls:
        parts.append(Text(f"{number(status.unknown_calls)} calls never heard of again", "yellow"))
    return joined(parts)


def speed_line(outlook: Outlook) -> Text:
    """The speed against what the limit allows; empty if that is not known."""
    if outlook.possible is None or not outlook.per_second:
        return Text()
    used = share(min(outlook.per_second, outlook.possible), outlook.possible)
    return Text(f"{rate(outlook.per_second)} of about {rate(outlook.possible)} pages/s that the limit allows ({used})")
