"""A full disk: new requests are refused before any harm, outcomes wait for their place, service goes on."""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from loractl.bus.client import Client
from loractl.bus.errors import StorageFailed
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    DaemonStatus,
    GetStatus,
    OptimStep,
    PassResult,
    StepResult,
)
from loractl.daemon.journal.tables import free_bytes
from loractl.tests.daemon.conftest import settings_for, short_lived_directory
from loractl.tests.daemon.office import LORA, forward_backward
from loractl.tests.daemon.real_daemon import PATIENCE_S, RealDaemon, actor_argv, until

DISK_BYTES = 96 * 2**20
ENOUGH_FOR_OUTCOMES = 32 * 2**20  # and not for new requests


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk of its own."""
    with short_lived_directory() as outside:
        disk = outside / "d"
        disk.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a small disk takes a root who may")
        yield disk
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def daemon(disk: Path) -> Iterator[RealDaemon]:
    config = settings_for(disk)
    actors = {"trainer": ("trainer", actor_argv(config, "stepping_actor.py", "trainer"))}
    daemon = RealDaemon(config, actors).until(trainer="ready")
    yield daemon
    daemon.close()


def fill(disk: Path, *, leave_bytes: int) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(disk) - leave_bytes)
    return ballast


def create(client: Client) -> AdapterCreated:
    created = client.request(CreateAdapter(name="pirate", lora=LORA), timeout_s=PATIENCE_S)
    assert isinstance(created, AdapterCreated)
    return created


def step(created: AdapterCreated, seq: int) -> OptimStep:
    return OptimStep(adapter=created.details.adapter, lane=created.lane, seq=seq, learning_rate=0.1)


def test_new_requests_are_refused_with_numbers_while_outcomes_still_have_room(daemon: RealDaemon, disk: Path):
    with daemon.client() as client:
        created = create(client)
        ballast = fill(disk, leave_bytes=ENOUGH_FOR_OUTCOMES)

        with pytest.raises(StorageFailed, match=r"the disk has \d+\.\d MiB free.*nothing was changed"):
            client.request(step(created, 1), timeout_s=PATIENCE_S)
        full = client.request(GetStatus(), timeout_s=PATIENCE_S)
        ballast.unlink()
        emptied = client.request(GetStatus(), timeout_s=PATIENCE_S)

        stepped = client.request(step(created, 1), timeout_s=PATIENCE_S)

    assert stepped == StepResult(applied=True, step=1, grad_norm=0.0, learning_rate=0.1, tokens=0)
    assert daemon.process.poll() is None
    assert isinstance(full, DaemonStatus)
    assert isinstance(emptied, DaemonStatus)
    assert 0 < full.disk_free_bytes <= ENOUGH_FOR_OUTCOMES
    assert (full.disk_is_full, emptied.disk_is_full) == (True, False)


def test_an_outcome_that_finds_no_room_is_told_once_there_is_some_and_the_daemon_lives(
    daemon: RealDaemon, disk: Path
):
    reasons: list[str] = []
    outside = disk.parent
    with daemon.client(on_waiting=reasons.append) as client:
        created = create(client)
        asked = forward_backward(adapter=created.details.adapter, lane=created.lane)
        asked = replace(asked, loss_config={"wait": 1.0, "positions": 1_000_000.0})
        pending = client.submit(asked)
        with pytest.raises(TimeoutError):
            pending.result(0.0)
        assert until((outside / "has").exists)
        ballast = fill(disk, leave_bytes=0)
        (outside / "go").touch()

        assert until(lambda: bool(waits(pending, reasons)))
        assert [each for each in reasons if "disk is full" in each]
        client.request(GetStatus(), timeout_s=PATIENCE_S)
        ballast.unlink()
        passed = pending.result(PATIENCE_S)

        assert isinstance(passed, PassResult)
        assert passed.logprobs.size == 1_000_000
        assert isinstance(client.request(step(created, 2), timeout_s=PATIENCE_S), StepResult)
    assert daemon.process.poll() is None


def test_a_log_without_room_costs_lines_and_says_later_how_many(daemon: RealDaemon, disk: Path):
    with daemon.client() as client:
        created = create(client)
        ballast = fill(disk, leave_bytes=0)
        for _ in range(60):  # a line each, which is more than the last page has room for
            with pytest.raises(StorageFailed):
                client.request(step(created, 1), timeout_s=PATIENCE_S)

        ballast.unlink()
        stepped = client.request(step(created, 1), timeout_s=PATIENCE_S)

    assert isinstance(stepped, StepResult)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    said = (daemon.layout.logs / "daemon.log").read_text()
    assert '"event": "log.lines_dropped"' in said
    assert said.count('"event": "journal.not_written"') < 60


def waits(pending: object, reasons: list[str]) -> list[str]:
    """Let what the daemon says come in."""
    with pytest.raises(TimeoutError):
        pending.result(0.05)  # type: ignore[attr-defined]
    return reasons
