"""The simulated world: shops and goods, the switches and script in force, and the ledger of calls."""

import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from random import Random
from time import time

import msgspec

from tests.simulator.catalogue import Shop
from tests.simulator.items import ItemFactory
from tests.simulator.journal import Journal
from tests.simulator.ledger import Ledger
from tests.simulator.listing import Listing, Selection
from tests.simulator.outcomes import ScriptError
from tests.simulator.script import Rule, Script
from tests.simulator.switches import Count, SwitchBoard, Switches


class Change(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What to do to a shop's goods now: counts, or for `vanish` and `reprice` also item ids."""

    appear: Count = 0
    vanish: Count | list[str] = 0
    restore: Count = 0
    reprice: Count | list[str] = 0


class Market:
    """Everything the APIs share; one instance per simulator."""

    def __init__(
        self, seed: int, shops: dict[str, Shop], switches: Switches, clock: Callable[[], float] = time
    ) -> None:
        self.seed = seed
        self.shops = shops
        self.factory = ItemFactory(seed)
        self.listing = Listing(self.factory)
        self.board: SwitchBoard[Switches] = SwitchBoard(switches)
        self.script: Script[Rule] = Script()
        self.ledger = Ledger(clock)
        self.journal = Journal()

    def is_sticky(self, shop: str, share: float) -> bool:
        """Say whether a shop is among the share of shops under maintenance."""
        digest = blake2b(f"sticky|{self.seed}|{shop}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < share * 2**64

    def reorder(self, shop: Shop, selection: Selection, share: float, draws: Sequence[float]) -> None:
        """Let a popularity order change before the next call."""
        self.listing.shuffle(shop, selection, share, Random(draws[7]))

    def churn(self, shop: Shop, switches: Switches, draws: Sequence[float], call: int) -> None:
        """Let goods come, go and change price after a page, at the switches' rates per page."""
        rates = (switches.appear, switches.vanish, switches.reprice, switches.restore)
        if not any(rates):
            return
        random = Random(draws[5])
        appear, vanish, reprice, restore = (int(rate + random.random()) for rate in rates)
        self.change(shop, Change(appear=appear, vanish=vanish, reprice=reprice, restore=restore), call, random)

    def change(self, shop: Shop, change: Change, call: int, random: Random) -> None:
        """Change a shop's goods, picking at random where only a count is given; ScriptError for an id not on sale."""
        for index in self._pick(shop, change.vanish, random):
            shop.vanish(index, call)
            self._note(shop, "vanish", index)
        for index in self._pick(shop, change.reprice, random):
            shop.reprice(index, call)
            self._note(shop, "reprice", index)
        away = shop.vanished()
        for index in random.sample(away, min(change.restore, len(away))):
            shop.restore(index)
            self._note(shop, "restore", index)
        for _ in range(change.appear):
            self._note(shop, "appear", shop.appear(call))

    def story(self) -> Iterator[bytes]:
        """Yield the journal's entries, each a line of JSON."""
        return self.journal.lines(list(self.shops), self.factory)

    def truth(self, shop: Shop, *, with_items: bool = True) -> Iterator[bytes]:
        """Yield one JSON object per item the shop ever had on sale, each a line."""
        gone = set(shop.vanished())
        variants = self.board.of(shop.key).variants
        key = json.dumps(shop.key).encode()
        for index in range(shop.next_index):
            life = shop.lives.get(index)
            repriced = life.repriced_at if life else []
            calls = [life.appeared_at if life and life.appeared_at is not None else 0, *repriced]
            facts = {
                "always_present": life is None or (life.appeared_at is None and not life.was_away),
                "on_sale": index not in gone,
                "appeared_at_call": life.appeared_at if life else None,
                "vanished_at_call": life.vanished_at if life else None,
                "versions": [
                    {"from_call": at, "price": f"{cents // 100}.{cents % 100:02d}"}
                    for number, at in enumerate(calls)
                    for cents in [self.factory.price(shop.number, index, number)]
                ],
            }
            text = json.dumps(facts, separators=(",", ":")).encode()[1:]
            item = self.factory.render(shop.number, index, len(repriced), variants) if with_items else b"null"
            item_id = self.factory.item_id(shop.number, index)
            yield b'{"shop":%b,"item_id":"%d","item":%b,%b\n' % (key, item_id, item, text)

    def _note(self, shop: Shop, kind: str, index: int) -> None:
        if self.board.everywhere.journal:
            self.journal.move(shop.number, kind, index)

    def _pick(self, shop: Shop, wanted: int | list[str], random: Random) -> list[int]:
        if isinstance(wanted, int):
            return random.sample(shop.alive, min(wanted, len(shop.alive)))
        ids = {str(self.factory.item_id(shop.number, index)): index for index in shop.alive}
        if unknown := [item for item in wanted if item not in ids]:
            raise ScriptError(f"not on sale: {', '.join(unknown)}")
        return [ids[item] for item in wanted]
