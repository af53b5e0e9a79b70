"""Records are seen at once, and nothing that may tell of them leaves before they are on the disk."""

import asyncio
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import TenantId
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, with_bridge
from loractl.tests.tinker_bridge.test_store import checkpoint
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.future_rows import Change, Settle
from loractl.tinker_bridge.housekeeping import keep_house
from loractl.tinker_bridge.records import CheckpointRecord, SessionRecord
from loractl.tinker_bridge.settling import Settling
from loractl.tinker_bridge.store import Store


class SlowDisk:
    """Waits for a word. begun: it was asked."""

    def __init__(self, bridge: Bridge) -> None:
        self._begun, self.go_on = threading.Event(), threading.Event()
        bridge.store.settling._sync = self._wait

    async def begun(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 20)

    def _wait(self, _descriptor: int) -> None:
        self._begun.set()
        assert self.go_on.wait(20)


def test_an_answer_waits_for_the_disk_and_nobody_else_does(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        known = await user.session()
        disk = SlowDisk(bridge)

        asking = asyncio.create_task(user.session())
        await disk.begun()
        await user.post("/session_heartbeat", session_id=known)

        assert len(bridge.store.all(SessionRecord)) == 2
        assert not asking.done()
        disk.go_on.set()
        assert await asking in bridge.sessions.live()

    with_bridge(tmp_path, test)


def test_a_result_waits_for_the_records_that_it_tells_of(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        run = await user.run()
        disk = SlowDisk(bridge)

        saving = asyncio.create_task(user.save(run, 1, "kept"))
        await disk.begun()

        (saved,) = bridge.store.all(CheckpointRecord)
        assert len(bridge.journal.table.unfinished()) == 1
        disk.go_on.set()
        assert await saving == saved.id

    with_bridge(tmp_path, test)


def test_what_was_told_is_there_when_the_power_goes(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()

        def sync(descriptor: int) -> None:
            os.fsync(descriptor)
            for each in bridge.layout.tinker_store.parent.glob(f"{bridge.layout.tinker_store.name}*"):
                if not each.name.endswith("-shm"):
                    shutil.copy(each, disk)

        bridge.store.settling._sync = sync
        user = User(bridge, "ann")
        run = await user.run()
        path = await user.save(run, 1, "kept")

        after = Store(disk / bridge.layout.tinker_store.name)

        assert after.owned(CheckpointRecord, TenantId("ann"), path) is not None
        assert after.all(SessionRecord) == bridge.store.all(SessionRecord)
        after.close()

    with_bridge(tmp_path, test)


def test_after_the_disk_refused_nothing_is_told_and_the_process_ends(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        known = await user.session(display_name="known")

        def refuse(_descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        bridge.store.settling._sync = refuse
        status = 500 if not StorageFailed.retryable else 503
        await user.post("/create_session", status, tags=[], sdk_version="0.38.0")
        bridge.store.settling._sync = os.fsync
        told = await user.get(f"/sessions/{known}", status)

        assert (told["code"], "Input/output error" in told["detail"]) == (StorageFailed.code, True)
        often = replace(bridge.config, bridge=replace(bridge.config.bridge, session_expiry_s=0.1))
        with pytest.raises(OSError, match="Input/output error"):
            await keep_house(replace(bridge, config=often))

    with_bridge(tmp_path, test)


def test_an_answer_does_not_need_the_results_of_others_to_be_written(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        with closing(sqlite3.connect(bridge.layout.tinker_futures)) as db:
            db.execute("CREATE TRIGGER full BEFORE INSERT ON changes BEGIN SELECT RAISE(ABORT, 'full'); END")
        change = Change(tenant=TenantId("ann"), what="w", key="k", done=True, unix_s=1.0)

        refused, settled = bridge.journal.write(change), bridge.journal.write(Settle())

        await settled
        with pytest.raises(StorageFailed, match="full"):
            await refused

    with_bridge(tmp_path, test)


def test_the_log_begins_anew_after_a_while(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    log = tmp_path / "s.sqlite-wal"

    def put(count: int) -> int:
        """How large the log is then."""
        for number in range(count):
            store.put(checkpoint(f"c{number % 10}"))
            if number % 100 == 0:
                store.settling.settle()
        return log.stat().st_size

    assert put(3000) < 2 * put(600)


def test_what_is_written_while_the_disk_is_at_work_waits_for_its_next_turn(tmp_path: Path) -> None:
    (tmp_path / "s-wal").touch()
    settling = Settling(tmp_path / "s", move=lambda: None, sync=lambda _: settling.wrote())

    settling.wrote()
    settling.settle()

    assert not settling.is_settled
