"""`python -m tests.simulator`: serve the simulated vendor until told to stop."""

import argparse
import asyncio
import json
import os
import signal
import sys
from typing import Any

import uvloop

from tests.simulator.app import DEFAULT_CACHE_MB, Simulator
from tests.simulator.catalogue import build_shops, write_shops
from tests.simulator.outcomes import ScriptError
from tests.simulator.switches import DEFAULT_FAULTS, DEFAULT_VARIANTS

# option -> fault whose probability it sets
_SHORTHANDS = {
    "p417": "417",
    "p417body": "417:body",
    "p429": "429",
    "p499": "499",
    "p500": "500",
    "p503": "503",
    "p503body": "503:body",
    "pslow": "slow",
    "preset": "reset",
    "ptruncated": "truncated",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0 takes a free one")
    add("--seed", type=int, default=1, help="equal seeds give equal shops, goods and faults")
    add("--shops", type=int, default=1000, help="how many shops are drawn")
    add("--profile", choices=("skewed", "uniform"), default="skewed")
    add("--items-min", type=int, help="fewest items of a drawn shop")
    add("--items-max", type=int, help="most items of a drawn shop (uniform: 100)")
    add(
        "--shop",
        type=_sized_shop,
        action="append",
        default=[],
        metavar="KEY=ITEMS",
        help="one more shop, of exactly that size",
    )
    add(
        "--top",
        type=_seller,
        action="append",
        default=[],
        metavar="NICK=ITEMS",
        help="a seller of the Taobao platform; a JSON object instead of the number specifies more",
    )
    add("--token", action="append", default=[], help="a valid token, repeatable; none: any token that is not empty")
    add("--faults", choices=("none", "default"), default="none")
    for option, fault in _SHORTHANDS.items():
        add(f"--{option}", type=float, default=None, metavar="P", help=f"probability of {fault} per call")
    add("--latency", type=float, default=0.0, metavar="SECONDS", help="median")
    add("--latency-tail", type=float, default=1.0, metavar="FACTOR", help="one call in a hundred takes FACTOR medians")
    add("--gate", type=int, default=0, metavar="N", help="calls in flight per token before 503; 0: no gate")
    add("--balance", type=int, metavar="N", help="billed calls per token before 439")
    add("--gzip", action="store_true", help="compress for clients that accept it")
    add("--set", action="append", default=[], metavar="SWITCH=JSON", help="any other switch, repeatable")
    add("--cache-mb", type=int, default=DEFAULT_CACHE_MB, help="memory for rendered pages")
    add("--warm", action="store_true", help="render pages before listening, as many as the memory holds")
    add("--print-shops", action="store_true", help="write the shops file to standard output and end")
    add("--until-eof", action="store_true", help="end when standard input is closed")
    return parser


def _sized_shop(text: str) -> tuple[str, int]:
    key, _, size = text.rpartition("=")
    if not key or not size.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=ITEMS")
    return key, int(size)


def _seller(text: str) -> tuple[str, Any]:
    nick, _, spec = text.partition("=")
    try:
        return nick, json.loads(spec)
    except json.JSONDecodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NICK=ITEMS") from None


def switches_from(options: argparse.Namespace) -> dict[str, Any]:
    """Return the switches the options ask for; ScriptError for a malformed --set."""
    faults = dict(DEFAULT_FAULTS) if options.faults == "default" else {}
    given = {fault: getattr(options, option) for option, fault in _SHORTHANDS.items()}
    faults |= {fault: share for fault, share in given.items() if share is not None}
    switches: dict[str, Any] = {
        "tokens": options.token,
        "faults": faults,
        "variants": DEFAULT_VARIANTS if options.faults == "default" else 0.0,
        "latency": options.latency,
        "latency_tail": options.latency_tail,
        "gate": options.gate,
        "balance": options.balance,
        "gzip": options.gzip,
    }
    for text in options.set:
        name, _, value = text.partition("=")
        try:
            switches[name] = json.loads(value)
        except json.JSONDecodeError:
            switches[name] = value
    return switches


async def serve(simulator: Simulator, *, until_eof: bool) -> None:
    """Announce the address on standard output, serve until a signal (or the end of standard input)."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_eof:
        loop.add_reader(sys.stdin.fileno(), _stop_at_eof, sys.stdin.fileno(), stop)
    async with simulator:
        ready = {"url": simulator.url, "port": simulator.port, "shops": len(simulator.market.shops)}
        print(json.dumps(ready), flush=True)
        await stop.wait()


def _stop_at_eof(descriptor: int, stop: asyncio.Event) -> None:
    if not os.read(descriptor, 4096):
        asyncio.get_running_loop().remove_reader(descriptor)
        stop.set()


def main() -> int:
    """Run the command and return its exit code: 2 for options that make no sense."""
    options = build_parser().parse_args()
    drawn: dict[str, Any] = {
        "seed": options.seed,
        "profile": options.profile,
        "items_min": options.items_min,
        "items_max": options.items_max,
        "extra": options.shop,
    }
    if options.print_shops:
        write_shops(build_shops(count=options.shops, **drawn), sys.stdout)
        return 0
    try:
        simulator = Simulator(
            shops=options.shops,
            cache_mb=options.cache_mb,
            warm=options.warm,
            host=options.host,
            port=options.port,
            top=dict(options.top),
            **drawn,
            **switches_from(options),
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(simulator, until_eof=options.until_eof))
    except (ScriptError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
