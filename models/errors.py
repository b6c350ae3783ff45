"""One small tree of errors, named by how shopcrawl reacts to them."""

from datetime import datetime


class ShopcrawlError(Exception):
    """The root: everything shopcrawl raises on purpose; its text is one line a user can act on, without secrets."""

    exit_code = 1


class UsageError(ShopcrawlError):
    """Bad usage, input or configuration: say what is wrong and where, and stop before any work is lost."""

    exit_code = 2


class UnavailableError(ShopcrawlError):
    """The database or Redis cannot be reached or is not usable: say so and how to mend it."""

    exit_code = 2


class FetchError(ShopcrawlError):
    """A page was not had.

    `code` is the effective outcome (a vendor's number as text, or a short word such as `truncated`), `retry_after`
    the pause in seconds that the server asked for.
    """

    def __init__(self, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.body: bytes | None = None
        """The answer that said so, for the archive."""


class TransientError(FetchError):
    """Try again after a pause: uses up one of the page's tries."""


class ThrottledError(FetchError):
    """Too many calls at once: shrink the limit, wait, and try again without using up a try."""


class CredentialParkedError(FetchError):
    """The credential is out of money or refused: send nothing more with it until it is resumed; the page waits."""


class SourceStoppedError(FetchError):
    """The whole source cannot work (a wrong address, say): stop sending until an operator resumes; the page waits."""


class PageRefusedError(FetchError):
    """This page cannot be had and trying again would not help: the page is dead."""


class ShopRefusedError(FetchError):
    """The API refuses this shop: the shop fails with the server's message."""


class BannedError(FetchError):
    """No call may be made for `seconds`: with this credential, or with any (`whole_source`); uses up no try."""

    def __init__(self, code: str, message: str, *, seconds: float, whole_source: bool = False) -> None:
        super().__init__(code, message, retry_after=seconds)
        self.seconds = seconds
        self.whole_source = whole_source


class ShopUnauthorisedError(FetchError):
    """The shop's own session is missing or refused: the shop is held until it has a new one; others go on."""


class WindowTooLargeError(PageRefusedError):
    """The page lies beyond the rows that the API reaches in one listing: the window must be split further."""


class EarlyWindowError(TransientError):
    """The window of time is not over by the API's own clock, which shows `now`: ask for an earlier one."""

    def __init__(self, code: str, message: str, *, now: datetime) -> None:
        super().__init__(code, message)
        self.now = now


class FieldsRefusedError(TransientError):
    """Perhaps the API refuses the fields that were asked for: ask for fewer; uses up a try."""
