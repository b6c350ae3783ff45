"""What calls cost, and whether a budget allows one more: pure decisions, exact in Decimal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import cache

from models.errors import UsageError

FREE = Decimal(0)
ANY = "*"


@dataclass(frozen=True, slots=True)
class Prices:
    """What an answer costs by its outcome code; `default` for the others, unknown ones included."""

    default: Decimal = FREE
    by_outcome: Mapping[str, Decimal] = field(default_factory=dict)

    def of(self, outcome: str) -> Decimal:
        """The price of one call that ended like this."""
        return self.by_outcome.get(outcome, self.default)

    @property
    def highest(self) -> Decimal:
        """What a call is counted at until its outcome is known."""
        return max(self.default, *self.by_outcome.values(), FREE)


@cache  # asked for with every page
def parse_prices(text: str) -> Prices:
    """Read `0.01`, or `0.01,417=0,503=0` with prices of single outcomes. Raises UsageError."""
    default, by_outcome = FREE, {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        code, equals, amount = part.rpartition("=")
        price = _price(amount)
        if equals and code.strip() != ANY:
            by_outcome[code.strip()] = price
        else:
            default = price
    return Prices(default, by_outcome)


def _price(text: str) -> Decimal:
    try:
        price = Decimal(text.strip())
    except InvalidOperation:
        price = Decimal(-1)
    if not (price.is_finite() and 0 <= price < 10**6 and price == round(price, 6)):
        raise UsageError(f"{text[:20]!r} is no price; write 0.01, or 0.01,417=0 for outcomes with a price of their own")
    return price


@dataclass(frozen=True, slots=True)
class Account:
    """What has been reserved against a cap: calls, and money at the highest price until the outcome is known.

    `name` tells a person which budget it is.
    """

    name: str
    calls: int = 0
    spend: Decimal = FREE
    max_calls: int | None = None
    max_spend: Decimal | None = None

    def allows(self, price: Decimal) -> bool:
        """Whether one more call at this price keeps the caps."""
        if self.max_calls is not None and self.calls >= self.max_calls:
            return False
        return self.max_spend is None or self.spend + price <= self.max_spend

    def charged(self, calls: int, spend: Decimal) -> "Account":
        """The account after so much more, or less."""
        return replace(self, calls=self.calls + calls, spend=self.spend + spend)

    @property
    def words(self) -> str:
        """The cap that is reached, in words."""
        if self.max_calls is not None and self.calls >= self.max_calls:
            return f"{self.name}: {self.max_calls} calls are used up"
        return f"{self.name}: {self.max_spend} is used up"


@dataclass(frozen=True, slots=True)
class Wish:
    """One call that would be made: the accounts it is charged to, all or none, and its highest price."""

    accounts: Sequence[str]
    price: Decimal


def grant(wishes: Sequence[Wish], accounts: Mapping[str, Account]) -> tuple[list[str | None], dict[str, Account]]:
    """Grant wishes in order: for each None, or the account that forbids it; and the accounts afterwards."""
    now = dict(accounts)
    refused: list[str | None] = []
    for wish in wishes:
        forbidding = next((key for key in wish.accounts if not now[key].allows(wish.price)), None)
        if forbidding is None:
            for key in wish.accounts:
                now[key] = now[key].charged(1, wish.price)
        refused.append(forbidding)
    return refused, now
