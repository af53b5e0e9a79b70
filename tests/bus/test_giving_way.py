"""Who computes gives way to who answers, and takes what it starts along."""

import os
import subprocess
import sys

OURS = os.nice(0)
# Whether CPUs are shared out among sessions first, and this one may say how.
SHARED = os.access("/proc/self/autogroup", os.W_OK)

_SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from loractl.bus.giving_way import give_way

give_way({niceness})
share = Path("/proc/self/autogroup")
child = subprocess.run([sys.executable, "-c", "import os; print(os.nice(0))"], capture_output=True, text=True, check=True)
print(os.nice(0), int(child.stdout), share.read_text().split()[-1] if os.access(share, os.W_OK) else os.nice(0))
"""


def told(niceness: int) -> list[int]:
    """Its niceness, that of a process that it starts, and that of its session."""
    came = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(niceness=niceness)],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert not came.stderr
    return [int(each) for each in came.stdout.split()]


def test_a_process_its_session_and_what_it_starts_give_way() -> None:
    assert told(2) == [OURS + 2, OURS + 2, 2 if SHARED else OURS + 2]


def test_none_is_none() -> None:
    assert told(0) == [OURS, OURS, 0 if SHARED else OURS]
