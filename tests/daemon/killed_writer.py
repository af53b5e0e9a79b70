"""A process that writes into a journal for as long as it lives, and tells what it knew to be durable."""

import random
import select
import sys
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from loractl.bus.settings import JournalConfig
from loractl.daemon.journal.known_ids import KnownIds
from loractl.daemon.journal.records import Ended, Received, Record
from loractl.daemon.journal.writer import Writer
from loractl.tests.daemon.journal_entries import ended, received

# Every so many-th request never ends, so that nothing may ever take it from the journal.
STAYS = 5
_GROUPS_AT_ONCE = 4


def frames_of(number: int) -> list[bytes]:
    """Small ones, and large ones of which some are the same."""
    return [b"%d" % number, bytes([number % 7]) * (5000 if number % 3 else 50)]


def write_until_killed(file: str, last: int, seed: int, keep_bytes: int, told: Connection) -> None:
    """last: the highest number in use. told: hears nothing once the process writes, then the numbers of
    requests that are durable; with a minus, that their outcomes are.

    Groups of records are submitted at once. A request's id is its seed, its group and the group's size."""
    draw = random.Random(seed)
    config = replace(JournalConfig(), keep_bytes=keep_bytes)
    writer = Writer(Path(file), config, KnownIds())
    numbers = count(last + 1)
    told.send([])
    for group in count():
        writer.submit(_group(numbers, f"{seed}/{group}", draw.randint(1, 6)))
        if group % _GROUPS_AT_ONCE == 0:
            select.select([writer.woken], [], [])
            done = writer.take_done()
            assert all(not refused for _, refused in done)
            told.send([_told(record) for record, _ in done])


def write_one_by_one() -> None:
    """`python killed_writer.py FILE`: until one of `crash_points` ends it; prints what it knows to be durable."""
    writer = Writer(Path(sys.argv[1]), JournalConfig(), KnownIds())
    for number in range(1, 10):
        writer.submit([received(number)])
        select.select([writer.woken], [], [])
        for record, _ in writer.take_done():
            print(_told(record), flush=True)


def _group(numbers: "count[int]", name: str, size: int) -> list[Record]:
    requests = [
        received(number, request=f"{name}/{size}/{number}", frames=frames_of(number))
        for number in (next(numbers) for _ in range(size))
    ]
    outcomes = [ended(each.number, next(numbers)) for each in requests if each.number % STAYS]
    return [*requests, *outcomes]


def _told(record: Record) -> int:
    assert isinstance(record, Received | Ended)
    return record.number if isinstance(record, Received) else -record.number


if __name__ == "__main__":
    write_one_by_one()
