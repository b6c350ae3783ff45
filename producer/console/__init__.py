"""What a person sees on the terminal: the live view of a crawl, its closing summary, and tables."""

from producer.console.summary import print_summary, shown_location
from producer.console.tables import print_crawls, print_status
from producer.console.watch import watch

__all__ = ["print_crawls", "print_status", "print_summary", "shown_location", "watch"]
