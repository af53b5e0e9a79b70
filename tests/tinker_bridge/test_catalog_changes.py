"""Checkpoints published, kept for a time, deleted, copied; sessions moved and searched; keys; refusals."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import TenantId
from loractl.bus.messages import DeleteAdapter, DeleteCheckpoint, DeleteVersion, LoadCheckpoint, Message
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, rest, with_bridge
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.housekeeping import one_round
from loractl.tinker_bridge.records import CheckpointRecord, RunRecord, SessionRecord


def asked(bus: InMemoryBus, kind: type[Message]) -> list[Any]:
    return [body for _, body in bus.asked if isinstance(body, kind)]


def test_publishing_twice_is_a_conflict_that_is_not_worth_a_repeat(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        place = rest(await ann.save(await ann.run(), 1, "a")) + "/publish"

        for method in ("POST", "DELETE", "POST"):
            await ann.ask(method, place)
            again = await ann.http.request(method, f"/api/v1{place}")

            assert again.status_code == 409
            assert again.headers["x-should-retry"] == "false"
            assert "already" in again.json()["detail"]

    with_bridge(tmp_path, test)


def test_a_repeat_after_a_lost_reply_hears_the_first_answer(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        place = rest(await ann.save(await ann.run(), 1, "a"))

        for key, method, path in (("1", "POST", f"{place}/publish"), ("2", "DELETE", place)):
            heard = [await ann.ask(method, path, headers={"X-Idempotency-Key": key}) for _ in range(2)]

            assert heard[0] == heard[1]
        assert len(asked(bus, DeleteCheckpoint)) == 1
        await ann.ask("DELETE", place, 404, headers={"X-Idempotency-Key": "3"})

    with_bridge(tmp_path, test)


def test_a_change_that_failed_is_tried_again_under_the_same_key(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        tries: list[int] = []

        async def change() -> None:
            tries.append(1)
            if len(tries) == 1:
                raise StorageFailed("no space")

        async def once() -> None:
            await bridge.repeats.once(TenantId("ann"), "PUT", "key", check=tuple, change=change)

        with pytest.raises(StorageFailed):
            await once()
        for _attempt in range(2):
            await once()
        assert len(tries) == 2

    with_bridge(tmp_path, test)


def test_deleting_deletes_the_state_too_and_then_there_is_none(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run()
        training, sampler = await ann.save(run, 1, "a"), await ann.save_for_sampler(run, 2, "a")

        for path in (training, sampler):
            await ann.ask("DELETE", rest(path))
            await ann.ask("DELETE", rest(path), 404)

        assert [each.name for each in asked(bus, DeleteCheckpoint)] == ["a"]
        assert [each.version for each in asked(bus, DeleteVersion)] == [1]
        assert (await ann.get("/checkpoints"))["checkpoints"] == []
        wrong = await ann.ask("DELETE", f"/training_runs/{run}/checkpoints/pictures/a", 400)
        assert "is no kind of checkpoint" in wrong["detail"]

    with_bridge(tmp_path, test)


def test_with_the_last_checkpoint_of_an_ended_run_goes_its_adapter(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        session = await ann.session()
        run = await ann.run(session)
        first, last = await ann.save(run, 1, "a"), await ann.save_for_sampler(run, 2, "b")
        await ann.post(f"/sessions/{session}/finish")
        await one_round(bridge)

        await ann.ask("DELETE", rest(first))
        assert asked(bus, DeleteAdapter) == []
        await ann.ask("DELETE", rest(last))

        assert len(asked(bus, DeleteAdapter)) == 1
        record = bridge.store.find(RunRecord, run)
        assert record is not None
        assert record.state == "deleted"
        assert (await ann.get(f"/training_runs/{run}"))["last_checkpoint"] is None

    with_bridge(tmp_path, test)


def test_a_time_to_live_can_be_set_and_taken_back(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        path = await ann.save(await ann.run(), 1, "a")

        for ttl_s, status in [
            (3600, 200),
            (3599, 400),
            (0, 400),
            (-1, 400),
            (10**10, 400),
            (1.5, 422),
            ("x", 422),
        ]:
            answer = await ann.ask("PUT", rest(path) + "/ttl", status, json={"ttl_seconds": ttl_s})
            assert status == 200 or answer["detail"]

        (shown,) = (await ann.get("/checkpoints"))["checkpoints"]
        assert datetime.fromisoformat(shown["expires_at"]) > datetime.fromisoformat(shown["time"])
        await ann.ask("PUT", rest(path) + "/ttl", 422, json={})
        await ann.ask("PUT", rest(path) + "/ttl", json={"ttl_seconds": None})
        (shown,) = (await ann.get("/checkpoints"))["checkpoints"]
        assert shown["expires_at"] is None

    with_bridge(tmp_path, test)


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_a_copy_is_a_checkpoint_of_a_run_of_its_own(tmp_path: Path, kind: str) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann, ben = User(bridge, "ann"), User(bridge, "ben")
        run = await ann.run(user_metadata={"renderer": "qwen3"})
        save = ann.save if kind == "weights" else ann.save_for_sampler
        source = await save(run, 1, "a")
        await ann.post(rest(source) + "/publish")

        body = {"source_path": source, "destination_project_id": "archive", "ttl_seconds": 7200}
        copy = (await ben.post("/copy_weights", **body))["tinker_path"]
        await ann.ask("DELETE", rest(source))

        assert copy.split("/")[-2:] == [kind, "a"]
        (shown,) = (await ben.get("/checkpoints"))["checkpoints"]
        assert (shown["tinker_path"], shown["public"]) == (copy, False)
        assert shown["expires_at"] is not None
        (listed,) = (await ben.get("/training_runs", project_id="archive"))["training_runs"]
        assert listed["user_metadata"] is None  # the run's is its owner's
        (adapter,) = [each for each in bus.adapters.values() if each.details.tenant == "ben"]
        assert not adapter.loaded
        stepped = await ben.http.post(
            "/api/v1/optim_step", json={"model_id": listed["training_run_id"], "seq_id": 1}
        )
        assert stepped.status_code == 410

    with_bridge(tmp_path, test)


def test_a_copy_of_ones_own_keeps_what_was_said_of_its_run(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        source = await ann.save(await ann.run(user_metadata={"renderer": "qwen3"}), 1, "a")

        await ann.post("/copy_weights", source_path=source, destination_project_id="archive")

        (listed,) = (await ann.get("/training_runs", project_id="archive"))["training_runs"]
        assert listed["user_metadata"] == {"renderer": "qwen3"}

    with_bridge(tmp_path, test)


def test_a_copy_does_not_wait_for_a_trainer_that_was_given_up(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        source = await ann.save(await ann.run(), 1, "a")
        bus.given_up = True

        refused = await ann.post("/copy_weights", 503, source_path=source, destination_project_id="archive")

        assert refused["code"] == "actor_unavailable"

    with_bridge(tmp_path, test)


def test_a_copy_into_a_session_is_made_once(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        session = await ann.session()
        source = await ann.save(await ann.run(session), 1, "a")
        body = {"source_path": source, "session_id": session, "model_seq_id": 7}

        copies = [(await ann.post("/copy_weights", **body))["tinker_path"] for _ in range(2)]

        assert copies == [f"tinker://{session}:train:7/weights/a"] * 2
        assert len(asked(bus, LoadCheckpoint)) == 1
        await ann.post("/copy_weights", 422, **{**body, "model_seq_id": 0})

    with_bridge(tmp_path, test)


def test_a_copy_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        path = await ann.save(await ann.run(), 1, "a")
        to = {"source_path": path, "destination_project_id": "p"}

        await ann.post("/copy_weights", 400, source_path=path)
        await ann.post("/copy_weights", 400, **to, ttl_seconds=1)
        token = await ann.post("/copy_weights", 400, **to, weights_access_token="t")
        assert "not supported by this server" in token["detail"]
        record = bridge.store.all(CheckpointRecord)[0]
        bridge.store.put(replace(record, name="gone"))
        await ann.post("/copy_weights", 404, **to)

        assert len(bus.adapters) == 1
        assert len(bridge.store.all(RunRecord)) == 1
        assert all(
            each.status != "active"
            for each in bridge.store.page(SessionRecord, record.tenant, limit=99, offset=0)[:-1]
        )

    with_bridge(tmp_path, test)


def test_sessions_are_found_by_name_id_metadata_project_and_status(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        night = await ann.session(display_name="Nightly run, 7B", user_metadata={"team": "a", "n": 1})
        day = await ann.session(display_name="daily", project_id="p")
        await ann.post(f"/sessions/{day}/finish", reason={"type": "errored"}, detail="boom")
        await ann.save(await ann.run(night), 1, "a")

        async def found(**body: Any) -> list[str]:
            return [each["session_id"] for each in (await ann.post("/sessions/search", **body))["sessions"]]

        assert await found() == [day, night]
        assert await found(display_name="RUN night") == [night]
        assert await found(display_name="run weekly") == []
        assert await found(display_name="daily", session_id=night) == [day, night]
        assert await found(user_metadata={"team": "a", "n": "1"}) == [night]
        assert await found(project_ids=["p"]) == [day]
        assert await found(statuses=[{"type": "active"}]) == [night]
        assert await found(statuses=[{"type": "client_finished", "reasons": ["success"]}]) == []
        assert await found(statuses=[{"type": "client_finished"}], owner={"type": "accessible"}) == [day]
        assert await found(owner={"type": "user", "owner_urns": ["somebody"]}) == []
        first, second = (await ann.post("/sessions/search"))["sessions"]
        assert first["status"] == {"type": "client_finished", "reason": {"type": "errored"}, "detail": "boom"}
        assert (first["owner"], first["project_id"], first["checkpoints_count"]) == ("ann", "p", 0)
        assert (second["checkpoints_count"], second["checkpoint_storage_bytes"]) == (1, 1000)

    with_bridge(tmp_path, test)


def test_a_search_goes_on_where_its_cursor_says(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        sessions = [await ann.session() for _ in range(5)]
        found: list[str] = []
        cursor = None

        for _page in range(3):
            page = await ann.post("/sessions/search", limit=2, cursor=cursor)
            found += [each["session_id"] for each in page["sessions"]]
            cursor = page["next_cursor"]

        assert cursor is None
        assert found == sessions[::-1]

    with_bridge(tmp_path, test)


def test_a_session_moves_to_a_project_with_its_runs(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        session = await ann.session()
        run = await ann.run(session)

        await ann.ask("PUT", f"/sessions/{session}/project", json={"project_id": "p"})

        (found,) = (await ann.get("/training_runs", project_id="p"))["training_runs"]
        assert found["training_run_id"] == run
        await ann.ask("PUT", f"/sessions/{session}/project", 422, json={})

    with_bridge(tmp_path, test)


def test_a_key_tells_about_itself_and_can_end_itself(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")

        me = await ann.get("/auth/apikey/me")

        assert (me["name"], me["details"]["user_details"]["email"]) == ("ann", "ann")
        assert isinstance(me["key_id"], int)
        assert ann.key not in str(me)
        await ann.ask("DELETE", "/auth/apikey/me")
        await ann.get("/auth/apikey/me", 401)

    with_bridge(tmp_path, test)


def test_storage_is_told_by_project(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        inside, outside = await ann.run(await ann.session(project_id="p")), await ann.run()
        for run, seq in ((inside, 1), (inside, 2), (outside, 1)):
            await ann.save(run, seq, f"c{seq}")

        usage = (await ann.get("/billing/usage/checkpoints/current"))["data"]

        counted = {each["project_id"]: (each["checkpoint_count"], each["size_bytes"]) for each in usage}
        assert counted == {"p": (2, 2000), None: (1, 1000)}
        only = (await ann.get("/billing/usage/checkpoints/current", project_id="p"))["data"]
        assert [each["checkpoint_count"] for each in only] == [2]

    with_bridge(tmp_path, test)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/auth/token"),
        ("POST", "/create_custom_loss"),
        ("GET", "/sessions/s/trace_export"),
        ("GET", "/training_runs/s:train:0/checkpoints/weights/a/archive"),
        ("GET", "/audit?event_type=all"),
        ("GET", "/billing/usage/events"),
    ],
)
def test_what_is_not_done_here_says_so(tmp_path: Path, method: str, path: str) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")

        answer = await ann.ask(method, path, 400)

        assert answer["detail"].endswith("is not supported by this server")
        ann.http.headers.pop("X-API-Key")
        await ann.ask(method, path, 401)

    with_bridge(tmp_path, test)


def test_a_search_among_very_many_sessions_finds_the_few_that_match(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        one = bridge.sessions.owned(TenantId("ann"), await ann.session())
        bridge.store.put(
            *(
                replace(one, id=f"s{n:03}", display_name=f"batch {n % 100:03}", created_unix_s=float(n // 2))
                for n in range(500)
            )
        )

        found, cursor = [], None
        while True:
            page = await ann.post("/sessions/search", display_name="batch 007", limit=2, cursor=cursor)
            found += [each["session_id"] for each in page["sessions"]]
            if (cursor := page["next_cursor"]) is None:
                break

        assert found == ["s407", "s307", "s207", "s107", "s007"]

    with_bridge(tmp_path, test)


def test_the_runs_and_samplers_of_a_session_come_page_by_page(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        session = await ann.session()
        runs = [await ann.run(session, number) for number in range(3)]

        page = await ann.get(f"/sessions/{session}", limit=1, offset=1)
        whole = await ann.get(f"/sessions/{session}")

        assert page["training_run_ids"] == runs[1:2]
        assert whole["training_run_ids"] == runs

    with_bridge(tmp_path, test)
