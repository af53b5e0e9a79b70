"""kill -9 at any moment: what was told to be durable is there, and nothing is there by half."""

import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest
from loractl.daemon.journal.store import Store
from loractl.tests.daemon.journal_entries import contradictions
from loractl.tests.daemon.killed_writer import STAYS, frames_of, write_until_killed

KILLS = 25
TIMES, MOMENT_S = 8, 0.01
ALL, LITTLE = 2**40, 2**18

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["loractl.tests.daemon.killed_writer"])


def told_before_its_death(
    file: Path, last: int, seed: int, keep_bytes: int, draw: random.Random
) -> list[int]:
    """Let a process write until it has told something a few times, and for a moment more; then kill it. Returns
    what it told (`write_until_killed`)."""
    hears, tells = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=write_until_killed, args=(str(file), last, seed, keep_bytes, tells))
    process.start()
    tells.close()
    told: list[int] = hears.recv()
    for _ in range(draw.randint(0, TIMES)):
        told += hears.recv()
    threading.Timer(draw.uniform(0.0, MOMENT_S), process.kill).start()
    with suppress(EOFError, OSError):
        while True:
            told += hears.recv()
    process.join()
    assert process.exitcode == -9
    return told


def by_half(past: Store, seed: int) -> list[str]:
    """Groups that were submitted at once and of which something is missing."""
    rows = past.tables.rows("SELECT request FROM requests WHERE request LIKE ?", f"{seed}/%")
    found = Counter(request.rpartition("/")[0] for (request,) in rows)
    return [group for group, count in found.items() if count != int(group.rpartition("/")[2])]


@pytest.mark.parametrize("keep_bytes", [ALL, LITTLE], ids=["all is kept", "history goes meanwhile"])
def test_what_was_told_durable_outlives_kill_9_and_nothing_is_there_by_half(tmp_path: Path, keep_bytes: int):
    file = tmp_path / "journal.sqlite"
    draw = random.Random(keep_bytes)
    count, last = 0, 0
    for seed in range(KILLS):
        told = told_before_its_death(file, last, seed, keep_bytes, draw)

        with closing(Store(file)) as past:
            unfinished = {each.number for each in past.unfinished()}
            for number in told:
                if keep_bytes == ALL and number < 0:
                    assert past.outcome(-number) == [b"outcome"]
                elif number > 0 and (keep_bytes == ALL or number % STAYS == 0):
                    assert past.request(number) == frames_of(number)
            assert {number for number in told if number > 0 and number % STAYS == 0} <= unfinished
            assert keep_bytes != ALL or by_half(past, seed) == []
            assert past.last_number() >= max(map(abs, told), default=0)
            count, last = count + len(told), past.last_number()
        assert contradictions(file, every_page=seed % 10 == 9) == []

    assert count > KILLS, "hardly anything was written"


@pytest.mark.parametrize(
    ("point", "durable"),
    [("journal.begun", 2), ("journal.written", 2), ("journal.committed", 3), ("journal.told", 3)],
)
def test_a_death_at_every_point_of_the_third_commit_leaves_two_or_three(
    tmp_path: Path, point: str, durable: int
):
    file = tmp_path / "journal.sqlite"
    writer = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_writer.py")), str(file)],
        env={**os.environ, "LORACTL_CRASH_AT": f"{point}:3", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert writer.returncode == -9
    with closing(Store(file)) as past:
        assert [each.number for each in past.unfinished()] == [1, 2, 3][:durable]
    assert [1, 2] <= [int(line) for line in writer.stdout.split()] <= [1, 2, 3][:durable]
    assert contradictions(file) == []
