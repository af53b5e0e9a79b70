"""Two tenants and an attacker: every route and every kind of request, tried with what belongs to somebody else.

    python bench/attacker.py [--out FILE]

Starts a daemon of its own with a tiny model. Each line is an attempt and its answer, without ids; `same`
says that it was answered exactly as for what does not exist. Ends with 1 if anything was not.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from attacking import bus_walk, http_walk
from attacking.kinds import Tried
from attacking.scene import scene
from loractl.client.interrupts import interrupt_when_ended

_SHOWN = 110


def line(tried: Tried) -> str:
    verdict = "same" if tried.same and not tried.leaked else "DIFFERS"
    answer = " ".join(tried.answer.split())
    shown = answer if len(answer) <= _SHOWN else answer[:_SHOWN] + "…"
    return f"{verdict:8} {tried.what:74} {tried.how:38} {shown}"


def tally(tries: Iterable[Tried]) -> str:
    tries = list(tries)
    bad = sum(not each.same or bool(each.leaked) for each in tries)
    return f"attempts {len(tries)}, answered as for what does not exist {len(tries) - bad}, otherwise {bad}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table there")
    options = parser.parse_args()
    tries = []
    interrupt_when_ended()
    with scene() as running:
        for walk in (bus_walk.walk, http_walk.walk):
            for each in walk(running):
                tries.append(each)
                print(line(each), flush=True)
    print(tally(tries))
    if options.out is not None:
        options.out.write_text("\n".join([*map(line, tries), tally(tries)]) + "\n")
    return int(any(not each.same or each.leaked for each in tries))


if __name__ == "__main__":
    sys.exit(main())
