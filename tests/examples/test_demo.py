"""The demo as a person runs it, with a few steps only: everything happens, and nothing is left behind."""

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

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"
LIMIT_S = 240


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where the demo puts its files. Not pytest's own directory: a socket's path must be short."""
    directory = Path(tempfile.mkdtemp(prefix="demo-"))
    yield directory
    shutil.rmtree(directory)


def start(scratch: Path) -> subprocess.Popen[str]:
    # The embedded engine: vllm has tests of its own, and takes longer to start.
    env = {**os.environ, "TMPDIR": str(scratch), "LORACTL_SAMPLER__ENGINE": "torch", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(DEMO), "--quick"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(scratch: Path) -> list[str]:
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(scratch) in line]


def test_it_trains_three_adapters_and_asks_all_of_them(scratch):
    demo = start(scratch)

    out, err = demo.communicate(timeout=LIMIT_S)

    assert demo.returncode == 0, err
    for adapter in ("base", "pirate", "haiku", "sql"):
        assert f"│ {adapter} " in out
    assert "served by sampler-0 (torch)" in out
    assert max(map(len, out.splitlines())) <= 100
    assert list(scratch.glob("loractl-demo-*")) == []
    assert processes_of(scratch) == []


def test_ctrl_c_while_it_trains_stops_the_daemon_and_leaves_nothing(scratch):
    demo = start(scratch)
    assert demo.stdout is not None
    before = next(line for line in demo.stdout if "loss" in line)

    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=LIMIT_S)

    assert "pirate" in before or "haiku" in before or "sql" in before
    assert demo.returncode == 130
    assert "the daemon stops" in out
    assert err.strip() == "interrupted"
    assert list(scratch.glob("loractl-demo-*")) == []
    assert processes_of(scratch) == []
