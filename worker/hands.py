"""What a page needs: the hands that a process makes once, and the count of what has happened to a page so far."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from models.database import Clock
from models.errors import (
    BannedError,
    CredentialParkedError,
    FetchError,
    ShopUnauthorisedError,
    SourceStoppedError,
    ThrottledError,
)
from models.settings import Settings
from models.source import Credential, source_named, source_names
from worker.circuit import Stop
from worker.circuits import Circuits
from worker.client import Client
from worker.credits import Credits
from worker.limiter import Limiter
from worker.parking import Parking
from worker.sessions import Sessions
from worker.writer import Writer


@dataclass
class Hands:
    """Everything a page needs, made once for each process."""

    settings: Settings
    clock: Clock
    limiter: Limiter
    client: Client
    writer: Writer
    parking: Parking
    sessions: Sessions
    circuits: Circuits
    credits: Credits | None = None
    """Daily budgets of the credentials, if they have any."""
    held: dict[int, int] = field(default_factory=dict)
    """Pages in this process and the fence of each: what the process reports to be alive with."""
    too_wide: set[tuple[str, str]] = field(default_factory=set)
    """(source, fields) that proved to be more than the API gives, so that only one call is refused for them."""

    @cached_property
    def sent_secrets(self) -> tuple[str, ...]:
        """What calls carry: the settings' secrets and every credential, those of third parties' sources included."""
        adapters = [source_named(name) for name in source_names()]
        credentials = [each.secret for adapter in adapters for each in adapter.credentials(self.settings)]
        return tuple(dict.fromkeys((*self.settings.sent_secrets, *credentials)))


@dataclass
class Attempts:
    """What has happened to this sending of a page so far."""

    tries: int
    throttles: int = 0
    claimed: bool = False
    called: bool = False
    """A call has left that no result accounts for yet: should this process be told to stop, it may not be repeated."""
    reserved: int = 1
    stop: Stop | None = None
    """What keeps the page from being called again since its last answer: its shop or source has come to rest."""
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, credential: Credential, error: FetchError | None) -> None:
        """Count one answer; one that is throttled or banned uses up no try, any other ends a row of those."""
        self.calls[credential.name, error.code if error else "200"] += 1
        self.called = True
        if isinstance(error, ThrottledError | BannedError):
            self.throttles += 1
            return
        self.throttles = 0
        blameless = isinstance(error, CredentialParkedError | SourceStoppedError | ShopUnauthorisedError)
        if error is not None and not blameless and not (self.stop and self.stop.whole_source):
            self.tries += 1
