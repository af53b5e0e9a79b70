"""Measurements that start a daemon stop it when they are ended from outside."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loractl.tests.daemon.real_daemon import until

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where the programs put their files. Not pytest's own directory: a socket's path must be short."""
    directory = Path(tempfile.mkdtemp(prefix="lo"))
    yield directory
    shutil.rmtree(directory)


def processes_of(scratch: Path) -> list[psutil.Process]:
    """Those whose temporary files lie there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(scratch):
                found.append(process)
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found


@pytest.mark.parametrize(
    ("program", "daemon"),
    [
        ("http_futures.py", "*/s/run/client.sock"),
        ("bus.py", "*/run/client.sock"),
        ("journal.py", "*/run/client.sock"),
    ],
)
def test_a_measurement_that_is_terminated_leaves_no_process(scratch: Path, program: str, daemon: str) -> None:
    measurement = subprocess.Popen(
        [sys.executable, str(BENCH / program)],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert until(lambda: any(scratch.glob(daemon)))
    assert len(processes_of(scratch)) > 1

    measurement.send_signal(signal.SIGTERM)
    measurement.wait(timeout=120)

    assert [each.cmdline() for each in processes_of(scratch)] == []
