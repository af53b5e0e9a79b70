"""What ends by itself: sessions and what they held, snapshots, versions that a crash left behind."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from loractl.bus.errors import StorageFailed
from loractl.bus.ids import TenantId
from loractl.bus.messages import (
    CreateAdapter,
    DeleteAdapter,
    DeleteVersion,
    LoraSpec,
    Message,
    PublishAdapter,
    UnloadAdapter,
)
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, bridge_on, with_bridge
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.founding.names import new_name
from loractl.tinker_bridge.housekeeping import end_session, one_round
from loractl.tinker_bridge.orphans import Orphans
from loractl.tinker_bridge.records import CheckpointRecord, RunRecord, SamplerRecord


async def snapshot(user: User, run: str, seq: int, number: int, **more: Any) -> str:
    """An unnamed sampler's id."""
    made = await user.work(
        "/save_weights_for_sampler", model_id=run, seq_id=seq, sampling_session_seq_id=number, **more
    )
    sampler: str = made["sampling_session_id"]
    return sampler


def version_of(bridge: Bridge, sampler: str) -> int:
    record = bridge.store.find(SamplerRecord, sampler)
    assert record is not None
    return record.version


def test_an_ended_session_frees_its_adapter_and_keeps_what_was_saved(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        saved, bare = await user.run(session, 0), await user.run(session, 1)
        await user.save(saved, 1, "kept")
        unnamed = await snapshot(user, saved, 2, 0)

        await user.post(f"/sessions/{session}/finish", reason={"type": "success"})
        await one_round(bridge)

        assert [type(body) for _, body in bus.asked if isinstance(body, UnloadAdapter | DeleteAdapter)] == [
            UnloadAdapter,
            DeleteAdapter,
        ]
        assert version_of(bridge, unnamed) == -1
        await user.post("/optim_step", 410, model_id=saved, seq_id=3)
        await user.post("/optim_step", 410, model_id=bare, seq_id=1)
        assert (await user.get(f"/training_runs/{saved}"))["last_checkpoint"][
            "checkpoint_id"
        ] == "weights/kept"

    with_bridge(tmp_path, test)


def test_a_round_that_was_cut_short_is_finished_by_the_next(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        run = await user.run()
        record = bridge.store.find(RunRecord, run)
        assert record is not None

        end_session(bridge, bridge.sessions.owned(user_id(user), record.parent), finished=False)
        await one_round(bridge)
        await one_round(bridge)

        assert sum(isinstance(body, DeleteAdapter) for _, body in bus.asked) == 1
        after = bridge.store.find(RunRecord, run)
        assert after is not None
        assert after.state == "deleted"

    with_bridge(tmp_path, test)


def user_id(user: User) -> TenantId:
    return TenantId(user.name)


def test_a_run_keeps_its_newest_snapshots(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        bridge.samplers._kept_snapshots = 2
        user = User(bridge, "ann")
        run = await user.run()

        samplers = [await snapshot(user, run, 1 + i, i) for i in range(4)]

        assert [version_of(bridge, each) for each in samplers] == [-1, -1, 3, 4]
        assert [body.version for _, body in bus.asked if isinstance(body, DeleteVersion)] == [1, 2]

    with_bridge(tmp_path, test)


def test_inflight_samplers_move_on_together_and_snapshots_stay(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        run = await user.run()

        first = await snapshot(user, run, 1, 0, kind="inflight")
        frozen = await snapshot(user, run, 2, 1)
        second = await snapshot(user, run, 3, 2, kind="inflight")

        assert [version_of(bridge, each) for each in (first, frozen, second)] == [3, 2, 3]
        assert [body.version for _, body in bus.asked if isinstance(body, DeleteVersion)] == [1]

    with_bridge(tmp_path, test)


def test_a_version_that_a_crash_left_is_deleted_only_when_nothing_speaks_of_it_later_either(
    tmp_path: Path,
) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        run = await user.run()
        path = await user.save_for_sampler(run, 1, "named")
        unnamed = await snapshot(user, run, 2, 0)
        record = bridge.store.find(RunRecord, run)
        assert record is not None
        publish = PublishAdapter(adapter=record.adapter, lane=record.lane, seq=9, held=True)
        await bus.request(publish, tenant=record.tenant)  # left by a crash
        await bus.request(publish, tenant=record.tenant)  # being saved at this moment
        orphans = Orphans(bridge, grace_s=100.0)

        await orphans.look(0.0)
        saved = bridge.store.find(CheckpointRecord, path)
        assert saved is not None
        bridge.store.put(replace(saved, id=f"{path}2", name="named2", version=4))
        await orphans.look(99.0)
        early = [body for _, body in bus.asked if isinstance(body, DeleteVersion)]
        await orphans.look(100.0)
        await orphans.look(200.0)

        assert early == []
        assert [body.version for _, body in bus.asked if isinstance(body, DeleteVersion)] == [3]
        assert version_of(bridge, unnamed) == 2

    with_bridge(tmp_path, test)


def test_an_adapter_that_a_crash_left_goes_and_those_of_others_stay(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        user, other = User(bridge, "ann"), User(bridge, "ben")
        session = await user.session()
        run = await user.run(session, 0)
        lora = LoraSpec(rank=8, alpha=32.0, seed=1)
        names = [f"{session}:train:1", f"{session}:sample:2", "mine", "a:train:1", f"{session}x:train:1"]
        for name in names:
            await bus.request(CreateAdapter(name=name, lora=lora), tenant=user_id(user))
        await bus.request(CreateAdapter(name=f"{session}:train:1", lora=lora), tenant=user_id(other))
        orphans = Orphans(bridge, grace_s=100.0)

        await orphans.look(0.0)
        await orphans.look(100.0)

        assert [each.details.name for each in bus.adapters.values()] == [run, *names[2:], names[0]]

    with_bridge(tmp_path, test)


def test_an_adapter_that_no_session_has_goes_when_its_bridge_died_before_it_was_written_down(
    tmp_path: Path,
) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann, ben = User(bridge, "ann"), User(bridge, "ben")
        kept = (await ben.http.post("/add_lora", json={"name": "poet", "rank": 4})).json()["model_id"]
        lora = LoraSpec(rank=8, alpha=32.0, seed=1)
        secret = bridge.store.secret
        elsewhere = new_name(b"of another store", user_id(ann), "poet")
        others = ["poet", f"poet-{'0' * 26}", elsewhere, new_name(secret, user_id(ben), "poet")]
        lost, late = new_name(secret, user_id(ann), "poet"), new_name(secret, user_id(ann), "a:train:b")
        orphans = Orphans(bridge, grace_s=100.0)
        for name in (*others, lost):
            await bus.request(CreateAdapter(name=name, lora=lora), tenant=user_id(ann))

        await orphans.look(0.0)
        await bus.request(CreateAdapter(name=late, lora=lora), tenant=user_id(ann))  # waited for room
        for now in (100.0, 200.0, 300.0):
            await orphans.look(now)

        assert [each.details.name for each in bus.adapters.values()] == [kept, *others]

    with_bridge(tmp_path, test)


def test_what_cannot_be_freed_keeps_nothing_else_from_being_freed(tmp_path: Path) -> None:
    class Stubborn(InMemoryBus):
        def _answer(self, body: Message, tenant: TenantId) -> Message:
            if isinstance(body, DeleteAdapter) and body.adapter == next(iter(self.adapters)):
                raise StorageFailed("the disk refused")
            return super()._answer(body, tenant)

    async def whole() -> None:
        bus = Stubborn()
        async with bridge_on(tmp_path, bus) as bridge:
            user = User(bridge, "ann")
            session = await user.session()
            first, second = await user.run(session, 0), await user.run(session, 1)
            await user.post(f"/sessions/{session}/finish", reason={"type": "success"})
            await one_round(bridge)

            assert [each.details.name for each in bus.adapters.values()] == [first]
            assert [run.id for run in bridge.runs.not_let_go()] == [first]
            assert second not in [run.id for run in bridge.runs.not_let_go()]

    asyncio.run(asyncio.wait_for(whole(), 60))


def full_disk(bridge: Bridge, condition: str) -> None:
    """Sessions' rows of some kind cannot be written any more."""
    bridge.store._db.execute(
        f"CREATE TRIGGER full BEFORE INSERT ON sessions WHEN {condition}"
        " BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
    )


def test_a_session_whose_end_cannot_be_written_goes_on_and_keeps_nobody_elses_from_ending(
    tmp_path: Path,
) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        stuck, other = await user.session(), await user.session()
        bridge.sessions._expiry_s = -1.0  # all of them are due
        full_disk(bridge, f"new.id = '{stuck}'")

        await one_round(bridge)
        assert bridge.sessions.live() == [stuck]
        assert bridge.sessions.owned(user_id(user), other).status == "expired"

        bridge.store._db.execute("DROP TRIGGER full")
        await one_round(bridge)
        assert bridge.sessions.owned(user_id(user), stuck).status == "expired"

    with_bridge(tmp_path, test)


def test_results_go_where_nothing_else_can_be_written(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        made = await user.post(
            "/create_model", session_id=await user.session(), model_seq_id=0, base_model="x"
        )
        await user.post("/retrieve_future", request_id=made["request_id"])
        bridge.futures._kept_bytes, bridge.futures._kept_s = 0, -1.0
        bridge.sessions._seen = {id_: seen + 1000 for id_, seen in bridge.sessions._seen.items()}
        full_disk(bridge, "true")

        await one_round(bridge)

        assert bridge.journal.table._row("SELECT coalesce(sum(bytes), 0) FROM totals") == (0,)

    with_bridge(tmp_path, test)


def test_a_name_that_expired_can_be_used_again_and_the_old_version_goes(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        run = await user.run()
        path = await user.save_for_sampler(run, 1, "best")
        record = bridge.store.find(CheckpointRecord, path)
        assert record is not None
        bridge.store.put(replace(record, expires_unix_s=1.0))

        again = await user.save_for_sampler(run, 2, "best")
        await one_round(bridge)

        assert again == path
        assert [body.version for _, body in bus.asked if isinstance(body, DeleteVersion)] == [1]
        assert [each["tinker_path"] for each in (await user.get("/checkpoints"))["checkpoints"]] == [path]

    with_bridge(tmp_path, test)
