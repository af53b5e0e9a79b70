"""Load, on a daemon with everything on: what a crowd, large bodies and a long day do to heartbeats and memory.

    python bench/load.py [waiting] [bodies] [soak] [--minutes 20] [--quick] [--json]

waiting   8,192 futures wait, each with a poll held open, while 64 clients train without a pause.
bodies    208 forward_backwards of 3.3 MB come at once.
soak      tenants train, save, sample, delete, begin and end sessions; memory and disk are looked at.

Each scenario starts a daemon of its own with a tiny model: bridge, broker with its journal, trainer. The
heartbeats are the SDK's, from a process of their own, fifty a second. The clients that make the load have
only what the service leaves of this machine's cores, as users' clients are on machines of their own. Beside each
row stands the p99 of the same heartbeats to a server that does nothing else: what the machine alone adds.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from loading import bodies, soak, waiting
from loading.heartbeats import Quickness
from loractl.client.interrupts import interrupt_when_ended
from rich.console import Console
from rich.table import Table

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="all, when none is named")
    parser.add_argument("--minutes", type=float, help="of the soak; 20, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="smaller, to see that it runs")
    parser.add_argument("--json", action="store_true", help="results as JSON, on stdout")
    arguments = parser.parse_args()
    interrupt_when_ended()
    results = {}
    for name in arguments.scenarios or SCENARIOS:
        result = SCENARIOS[name](arguments)
        results[name] = asdict(result)
        if not arguments.json:
            SHOWN[name](result)
    if arguments.json:
        print(json.dumps({"load": os.getloadavg(), **results}))


def measure_waiting(arguments: argparse.Namespace) -> waiting.Waiting:
    if arguments.quick:
        return waiting.measure(waiting=1024, clients=16, seconds=5.0)
    return waiting.measure(waiting=8192, clients=64, seconds=40.0)


def measure_bodies(arguments: argparse.Namespace) -> bodies.Bodies:
    return bodies.measure(count=16 if arguments.quick else 208, seconds=5.0)


def measure_soak(arguments: argparse.Namespace) -> soak.Soak:
    return soak.measure(arguments.minutes or (1.0 if arguments.quick else 20.0))


SCENARIOS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "waiting": measure_waiting,
    "bodies": measure_bodies,
    "soak": measure_soak,
}


def show_waiting(result: waiting.Waiting) -> None:
    print_heartbeats(
        {
            "alone": result.alone,
            f"{result.waiting:,} futures sent, then polled": result.opening,
            f"{result.waiting:,} polls held open": result.held,
            f"and {result.clients} clients without a pause": result.submitting,
            f"the {result.waiting:,} answered, at once": result.released,
        }
    )
    print(f"{result.clients} clients beside them: {result.futures_per_s:.0f} no-op futures a second")
    print(f"{result.answered:,} of {result.waiting:,} were answered, in {result.released_s:.1f} s")
    print_memory({"most, in MiB": result.rss})


def show_bodies(result: bodies.Bodies) -> None:
    print_heartbeats(
        {
            "alone": result.alone,
            f"{result.bodies} bodies of {result.body_bytes / 1e6:.1f} MB come": result.accepting,
            "and are worked on": result.working,
        }
    )
    print(
        f"{result.accepted} accepted in {result.accepted_s:.1f} s, {result.answered} answered in "
        f"{result.done_s:.1f} s ({result.positions:,} positions each), "
        f"{'none missing' if result.in_order else 'SOME MISSING'}"
    )
    print_memory({"before, in MiB": result.rss_before, "most": result.rss_peak})


def show_soak(result: soak.Soak) -> None:
    print_heartbeats({f"{soak.TENANTS} tenants live, {result.minutes:g} minutes": result.heartbeats})
    print(
        f"{result.sessions} sessions lived through, {len(result.failed)} failed {[*set(result.failed)] or ''}"
    )
    table = Table("second half, in MiB", "first", "last", "most", "an hour", "flat")
    for name, grown in result.growth.items():
        sizes = (grown.first, grown.last, grown.most, grown.bytes_per_hour)
        table.add_row(name, *(f"{size / MIB:.1f}" for size in sizes), "yes" if grown.flat else "no")
    Console(width=120).print(table)


SHOWN: dict[str, Callable[[Any], None]] = {
    "waiting": show_waiting,
    "bodies": show_bodies,
    "soak": show_soak,
}


def print_heartbeats(rows: dict[str, Quickness]) -> None:
    table = Table("heartbeats while", "sent", "failed", "p50 ms", "p95", "p99", "most", "machine's own p99")
    for name, row in rows.items():
        cells = (row.p50, row.p95, row.p99, row.worst, row.machine_p99)
        table.add_row(name, str(row.count), str(row.failed), *(f"{cell:.1f}" for cell in cells))
    Console(width=120).print(table)


def print_memory(rows: dict[str, dict[str, int]]) -> None:
    names = next(iter(rows.values()))
    table = Table("memory", *names)
    for name, row in rows.items():
        table.add_row(name, *(f"{size / MIB:.0f}" for size in row.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
