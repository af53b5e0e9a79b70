"""`make fuzz`: hostile input for every reader, drawn from a seed; which of it did harm, and how.

    python fuzz.py [--count 100000] [--seed N] [--kind NAME] [--case N] [--jobs 2]

With --case, that one case again, and what it does, told in full. The last line reads `cases N, failures F`
and the exit status is 1 if F is above 0.
"""

import argparse
import logging
import secrets
import sys
import time
from collections.abc import Iterator, Sequence

import structlog
from loractl.tests.fuzz.playing import Played, Task, play_again, play_all
from loractl.tests.fuzz.subject import MIB, Fault, Subject
from loractl.tests.fuzz.subjects import SUBJECTS

# Whoever ends early lets the others of its subject go on in its place.
_PARTS = 4


def main() -> int:
    arguments = _arguments()
    silence()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # what broke a reader is no text
    seed = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    subjects = [each for each in SUBJECTS if arguments.kind in (None, each.name)]
    if arguments.case is not None:
        return _report(play_again(subjects[0], seed, arguments.case).faults, cases=1)
    print(f"seed {seed}", flush=True)
    whole = sum(each.share for each in subjects)
    counts = {each.name: max(1, arguments.count * each.share // whole) for each in subjects}
    tasks = [task for each in subjects for task in split(each, counts[each.name])]
    totals = {each.name: Played() for each in subjects}
    began = time.monotonic()
    for subject, played in play_all(tasks, seed, arguments.jobs):
        totals[subject.name].add(played)
        _tell(played.faults)
    _table(totals, time.monotonic() - began)
    faults = [fault for each in totals.values() for fault in each.faults]
    return _report([], cases=sum(each.cases for each in totals.values()), failures=len(faults))


def split(subject: Subject, count: int) -> Iterator[Task]:
    """Its cases in a few parts, whole episodes each."""
    step = -(-count // _PARTS)
    if subject.episode:
        step = -(-step // subject.episode) * subject.episode
    for first in range(0, count, step):
        yield Task(subject, range(first, min(first + step, count)))


def silence() -> None:
    """What is refused is logged by the thousand otherwise."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)


def _table(totals: dict[str, Played], seconds: float) -> None:
    print(
        f"{'kind':<14}{'cases':>8}{'cpu s':>9}{'ms each':>9}{'grew MiB':>10}{'peak MiB':>10}{'failures':>10}"
    )
    for name, each in totals.items():
        print(
            f"{name:<14}{each.cases:>8}{each.cpu_s:>9.1f}{1000 * each.cpu_s / max(1, each.cases):>9.2f}"
            f"{each.grown_bytes / MIB:>10.0f}{each.peak_bytes / MIB:>10.0f}{len(each.faults):>10}"
        )
    print(f"in {seconds:.0f} s")


def _tell(faults: Sequence[Fault]) -> None:
    for fault in faults:
        print(f"{fault.subject} case {fault.case}: {fault.what.strip()}\n  again: {fault.again}", flush=True)


def _report(faults: Sequence[Fault], *, cases: int, failures: int = 0) -> int:
    _tell(faults)
    failures += len(faults)
    print(f"cases {cases}, failures {failures}")
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    names = [each.name for each in SUBJECTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--kind", choices=names)
    parser.add_argument("--case", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.case is not None and (arguments.seed is None or arguments.kind is None):
        parser.error("--case needs --seed and --kind")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
