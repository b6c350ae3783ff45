"""`python -m benchmarks [NAME ...]`: run the benchmarks, each in a process of its own, and print one table."""

import argparse
import json
import subprocess
import sys

from benchmarks.figures import RESULTS, Figure
from benchmarks.rig import ROOT

NAMES = (
    "end_to_end",
    "many_in_flight",
    "million_pages",
    "windows",
    "history_bytes",
    "ten_million",
    "limiter_gate",
    "limiter_fleet",
    "limiter_bounds",
    "limiter_urgent",
    "budget",
    "budgeted",
    "replay",
    "truth",
)


def run(name: str) -> bool:
    """Run one benchmark; returns whether it ended with all its limits kept."""
    print(f"== {name}", flush=True)
    (RESULTS / f"{name}.json").unlink(missing_ok=True)
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=False).returncode == 0


def table(names: list[str]) -> list[str]:
    """Every figure that has a limit; a benchmark that broke off has none."""
    lines = []
    for name in names:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            lines.append(f"{name:<15} broke off, see above{'FAIL':>71}")
            continue
        for entry in json.loads(path.read_text())["figures"]:
            entry.pop("verdict")
            figure = Figure(**entry)
            if figure.limit is not None:
                lines.append(f"{name:<15} {figure.line()}")
    return lines


def main() -> bool:
    """Run what the command line names; returns whether every limit was kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; default: all of them")
    names = parser.parse_args().names or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join(NAMES)}")
    kept = [run(name) for name in names]
    print("\n" + "\n".join(table(names)))
    return all(kept)


if __name__ == "__main__":
    sys.exit(not main())
