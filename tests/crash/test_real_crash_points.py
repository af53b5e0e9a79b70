"""Killed exactly where the real trainer and the real bridge make something durable, or have just told of it.

Each time the trainer dies at one point and the bridge at another, while a tenant trains, saves and removes through
the SDK; a point that nobody passes fails the test, for then nobody died.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loractl.tests.crash.crashed_daemon import CrashedDaemon, settings, write_settings
from loractl.tests.crash.judging import ask_again, broken_promises, digests
from loractl.tests.crash.points import REAL
from loractl.tests.crash.recording import recording
from loractl.tests.crash.report import Report
from loractl.tests.crash.tenant_script import TenantScript, run_all
from loractl.tests.trainer_actor.loop.random_model import make_model

pytest.importorskip("tinker", reason="the tenant uses the SDK")

ROUNDS = 4
PATIENCE_S = 120.0
_DIED = re.compile(
    r'"actor": ?"([^"]*)".*"event": ?"actor\.died"|"event": ?"actor\.died".*"actor": ?"([^"]*)"'
)


@dataclass
class Lived:
    seen: list[str]
    digests: dict[str, str]
    died: set[str]
    report: Report


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Short, because a socket's path has room for about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="lo") as directory:
        make_model(Path(directory) / "model")
        yield Path(directory)


def live(root: Path, name: str, crash_at: str = "") -> Lived:
    tree = settings(root / "model")
    tree["sampler"]["count"] = 0
    tree["journal"]["snapshot_s"] = 0.01  # so that there are some in the middle, however fast it all goes
    write_settings(root / name, tree)
    daemon, report = CrashedDaemon(root / name), Report(seed=0, tenants=1)
    with recording(lambda: daemon.url) as proxy, contextlib.ExitStack() as stack:
        stack.callback(daemon.stop)
        daemon.start(crash_at=crash_at)
        daemon.until_ready()
        key = daemon.key("tenant-0")
        script = TenantScript(0, proxy.url, key, lambda done: done < ROUNDS, samples=False)
        [thread] = run_all([script])
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"hangs while {script.at}"
        assert not script.failure, script.failure
        ask_again(proxy, report)
        report.failures += broken_promises(daemon)
        found = digests(daemon, [script], report)
        log = (daemon.layout.logs / "daemon.log").read_text()
    died = {first or second for first, second in _DIED.findall(log)}
    return Lived(script.seen, found, died, report)


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> Lived:
    calm = live(root, "calm")
    assert not calm.died
    return calm


@pytest.mark.parametrize(("trainers", "bridges"), REAL)
def test_killed_at_these_points_a_tenant_sees_what_it_would_have_seen(
    root: Path, undisturbed: Lived, quiet_sdk: None, trainers: str, bridges: str
):
    disturbed = live(root, trainers.partition(":")[0], f"{trainers}, {bridges}")

    assert disturbed.died == {"trainer", *(["bridge"] if bridges else [])}
    assert disturbed.report.good, disturbed.report.words()
    assert disturbed.seen == undisturbed.seen
    assert disturbed.digests == undisturbed.digests
