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

pytest.importorskip("tinker", reason="the demo's tenants use the SDK")

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

    assert (demo.returncode, err) == (0, ""), err  # the SDK has nothing to warn of either
    for adapter in ("base", "pirate", "haiku", "sql"):
        assert f"│ {adapter} " in out
    for adapter in ("pirate", "haiku", "sql"):
        assert f"{adapter:7} saved as tinker://" in out
    assert "served by sampler-0 (torch on" in out
    assert "12 of 12 requests answer 404" in out
    assert 'eval "$(loractl env' in out
    assert max(map(len, out.splitlines())) <= 100
    assert list(scratch.glob("loractl-demo-*")) == []
    assert processes_of(scratch) == []


def test_it_says_so_and_ends_when_its_daemon_dies(scratch):
    demo = start(scratch)
    assert demo.stdout is not None
    assert any("loss" in line for line in demo.stdout)

    (pid,) = scratch.glob("loractl-demo-*/state/run/daemon.pid")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    _, err = demo.communicate(timeout=LIMIT_S)

    assert demo.returncode == 1
    first, kept, *_ = err.splitlines()
    assert first == "error: the daemon has ended: its logs say why"
    assert kept.startswith("kept ")


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
