"""What is listed of sessions that ended long ago goes, and nothing that anybody could still use."""

import time
from dataclasses import replace
from pathlib import Path

from loractl.bus.ids import TenantId
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, rest, with_bridge
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.housekeeping import forget_past, one_round
from loractl.tinker_bridge.past_records import past_records
from loractl.tinker_bridge.records import RunRecord, SamplerRecord, SessionRecord

DAY_S = 24 * 3600.0


async def finish(user: User, bridge: Bridge, session: str) -> None:
    await user.post(f"/sessions/{session}/finish", reason={"type": "success"})
    await one_round(bridge)


async def sampler(user: User, session: str, number: int = 0) -> str:
    body = {"session_id": session, "sampling_session_seq_id": number, "base_model": "tiny"}
    made: str = (await user.post("/create_sampling_session", **body))["sampling_session_id"]
    return made


async def forget(bridge: Bridge, *, days: float) -> None:
    await forget_past(bridge, time.time() + days * DAY_S)


def test_of_an_ended_session_stays_what_has_a_checkpoint(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session(project_id="thesis")
        saved, bare = await user.run(session, 0), await user.run(session, 1)
        path = await user.save(saved, 1, "kept")
        asked = await sampler(user, session)
        await finish(user, bridge, session)

        await forget(bridge, days=29)
        early = await user.get(f"/sessions/{session}")
        await forget(bridge, days=31)

        assert (early["training_run_ids"], early["sampler_ids"]) == ([saved, bare], [asked])
        late = await user.get(f"/sessions/{session}")
        assert (late["training_run_ids"], late["sampler_ids"]) == ([saved], [])
        assert (await user.get(f"/training_runs/{saved}"))["last_checkpoint"]["tinker_path"] == path
        assert (await user.get("/billing/usage/checkpoints/current"))["data"][0]["project_id"] == "thesis"
        again = await user.run()
        await user.work("/load_weights", model_id=again, seq_id=1, path=path)

    with_bridge(tmp_path, test)


def test_with_its_last_checkpoint_an_ended_session_goes_as_a_whole(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        run = await user.run(session, 0)
        path = await user.save(run, 1, "kept")
        await finish(user, bridge, session)
        await user.ask("DELETE", rest(path))

        await forget(bridge, days=31)

        await user.get(f"/training_runs/{run}", 404)
        await user.get(f"/sessions/{session}", 404)
        assert (await user.get("/sessions"))["sessions"] == []

    with_bridge(tmp_path, test)


def test_a_session_that_lives_keeps_everything_however_old(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        run, asked = await user.run(session, 0), await sampler(user, session)

        await forget(bridge, days=10_000)

        shown = await user.get(f"/sessions/{session}")
        assert (shown["training_run_ids"], shown["sampler_ids"]) == ([run], [asked])

    with_bridge(tmp_path, test)


def test_a_sampler_whose_version_could_not_be_deleted_yet_stays_with_its_session(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        run = await user.run(session, 0)
        more = {"model_id": run, "seq_id": 1, "sampling_session_seq_id": 0}
        held = (await user.work("/save_weights_for_sampler", **more))["sampling_session_id"]
        await user.post(f"/sessions/{session}/finish", reason={"type": "success"})

        await forget(bridge, days=31)

        assert [each.id for each in bridge.store.all(SamplerRecord)] == [held]
        assert [each.id for each in bridge.store.all(SessionRecord)] == [session]

    with_bridge(tmp_path, test)


def test_a_run_of_no_session_goes_after_its_removal_only(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        of_session = bridge.store.find(RunRecord, await user.run())
        assert of_session is not None
        there, removed = (replace(of_session, id=each, parent="") for each in ("there", "removed"))
        bridge.store.put(there, replace(removed, state="deleted"))

        await forget(bridge, days=31)

        assert [each.id for each in bridge.store.all(RunRecord)] == [of_session.id, "there"]

    with_bridge(tmp_path, test)


def test_a_few_at_a_time_all_of_it_goes(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        await user.run(session, 0)
        for number in range(3):
            await sampler(user, session, number)
        await finish(user, bridge, session)

        rounds = []
        while found := past_records(bridge.store, time.time() + DAY_S, [], most=2):
            bridge.store.delete(*found)
            rounds.append([type(each) for each in found])

        assert rounds == [[SamplerRecord] * 2 + [RunRecord], [SamplerRecord], [SessionRecord]]

    with_bridge(tmp_path, test)


def test_nothing_goes_where_that_is_wished(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        await finish(user, bridge, session)
        for_ever = replace(bridge.config, bridge=replace(bridge.config.bridge, record_s=0.0))

        await forget_past(replace(bridge, config=for_ever), time.time() + 10_000 * DAY_S)

        assert bridge.store.owned(SessionRecord, TenantId("ann"), session) is not None

    with_bridge(tmp_path, test)
