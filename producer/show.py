"""`shopcrawl show`: a page about one shop, or about one of its items."""

import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from models.database import unavailable
from models.profiles import ItemProfile, ShopProfile, item_profile, shop_profile
from models.settings import Settings, load_settings
from producer import run
from producer.console.show import print_shop
from producer.console.show_item import print_item


def show(
    shop: Annotated[str, typer.Argument(help="A shop's key.")],
    item: Annotated[str | None, typer.Argument(metavar="[ITEM]", help="One of its items, by its id.")] = None,
    source: Annotated[str | None, typer.Option(help="The shop's source, if several have a shop of this key.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")] = False,
) -> None:
    """Show a shop with its crawls and changes, or one of its items with its prices over time."""
    profile = run.run_until_signalled(_read(load_settings(), shop, item, source))
    if json:
        sys.stdout.write(msgspec.json.encode(profile).decode() + "\n")
    elif isinstance(profile, ItemProfile):
        print_item(Console(), profile)
    else:
        print_shop(Console(), profile)


async def _read(settings: Settings, shop: str, item: str | None, source: str | None) -> ShopProfile | ItemProfile:
    try:
        async with run.database(settings) as (engine, _clock):
            if item is None:
                return await shop_profile(engine, shop, source)
            return await item_profile(engine, shop, item, source)
    except (SQLAlchemyError, OSError) as error:
        raise unavailable(error) from None
