"""What the REST API lists: everyone's own things, what is public, all of it still there after a restart."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import API, User, bridge_on, client, rest, with_bridge
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.housekeeping import one_round
from loractl.tinker_bridge.records import CheckpointRecord, RunRecord
from loractl.tinker_bridge.whole import is_whole


def test_a_run_is_shown_with_its_owner_its_metadata_and_its_last_checkpoints(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run(user_metadata={"renderer": "qwen3", "lr": 0.1, "nested": {"a": None}})
        await ann.save(run, 1, "000001")
        newest = await ann.save(run, 2, "000002", ttl_seconds=7200, user_metadata={"step": "2"})
        sampler = await ann.save_for_sampler(run, 3, "000002")

        shown = await ann.get(f"/training_runs/{run}")

        assert shown["training_run_id"] == run
        assert (shown["base_model"], shown["model_owner"]) == ("tiny", "ann")
        assert (shown["is_lora"], shown["lora_rank"], shown["corrupted"]) == (True, 8, False)
        assert shown["user_metadata"] == {"renderer": "qwen3", "lr": "0.1", "nested": '{"a": null}'}
        assert datetime.fromisoformat(shown["last_request_time"]).tzinfo is not None
        last = shown["last_checkpoint"]
        assert (last["tinker_path"], last["checkpoint_id"]) == (newest, "weights/000002")
        assert (last["checkpoint_type"], last["size_bytes"], last["public"]) == ("training", 1000, False)
        assert last["user_metadata"] == {"step": "2"}
        lasts = datetime.fromisoformat(last["expires_at"]) - datetime.fromisoformat(last["time"])
        assert lasts.total_seconds() == pytest.approx(7200)
        assert shown["last_sampler_checkpoint"]["tinker_path"] == sampler
        assert shown["last_sampler_checkpoint"]["expires_at"] is None

    with_bridge(tmp_path, test)


def test_runs_are_listed_newest_first_page_by_page(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann, ben = User(bridge, "ann"), User(bridge, "ben")
        session = await ann.session(project_id="p1")
        runs = [await ann.run(session, number) for number in range(3)]
        other = await ann.run()
        await ben.run()

        page = await ann.get("/training_runs", limit=2, offset=1, access_scope="accessible")
        of_project = await ann.get("/training_runs", limit=2, project_id="p1")

        assert [each["training_run_id"] for each in page["training_runs"]] == [runs[2], runs[1]]
        assert page["cursor"] == {"limit": 2, "offset": 1, "total_count": 4}
        assert [each["training_run_id"] for each in of_project["training_runs"]] == [runs[2], runs[1]]
        assert of_project["cursor"]["total_count"] == 3
        assert (await ann.get("/training_runs"))["training_runs"][0]["training_run_id"] == other

    with_bridge(tmp_path, test)


def test_checkpoints_are_listed_by_run_oldest_first_and_by_user_newest_first(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        first, second = await ann.run(), await ann.run()
        paths = [await ann.save(first, seq, f"c{seq}") for seq in (1, 2)]
        paths.append(await ann.save(second, 1, "c3"))

        of_run = await ann.get(f"/training_runs/{first}/checkpoints")
        page = await ann.get(f"/training_runs/{first}/checkpoints", limit=1, offset=1)
        of_user = await ann.get("/checkpoints", limit=2)

        assert [each["tinker_path"] for each in of_run["checkpoints"]] == paths[:2]
        assert of_run["cursor"] is None
        assert [each["tinker_path"] for each in page["checkpoints"]] == paths[1:2]
        assert page["cursor"] == {"limit": 1, "offset": 1, "total_count": 2}
        assert [each["tinker_path"] for each in of_user["checkpoints"]] == [paths[2], paths[1]]
        assert of_user["cursor"] == {"limit": 2, "offset": 0, "total_count": 3}

    with_bridge(tmp_path, test)


def _remove_directory(layout: StateLayout, record: CheckpointRecord) -> None:
    home = layout.checkpoint(record.adapter, record.name)
    shutil.rmtree(home if record.kind == "training" else layout.version(record.adapter, record.version))


def _remove_file(layout: StateLayout, record: CheckpointRecord) -> None:
    _weights(layout, record).unlink()


def _cut_short(layout: StateLayout, record: CheckpointRecord) -> None:
    os.truncate(_weights(layout, record), 999 if record.kind == "training" else 0)


def _weights(layout: StateLayout, record: CheckpointRecord) -> Path:
    if record.kind == "training":
        return layout.checkpoint(record.adapter, record.name) / "1" / "state.safetensors"
    return layout.version(record.adapter, record.version) / "adapter_model.safetensors"


@pytest.mark.parametrize("damage", [_remove_directory, _remove_file, _cut_short])
def test_a_checkpoint_whose_files_are_gone_is_neither_listed_nor_found_and_can_be_deleted(
    tmp_path: Path, damage: Callable[[StateLayout, CheckpointRecord], None]
) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        session = await ann.session()
        run = await ann.run(session)
        kept = await ann.save(run, 1, "kept")
        gone = [await ann.save(run, 2, "gone"), await ann.save_for_sampler(run, 3, "gone")]
        for path in gone:
            record = bridge.store.find(CheckpointRecord, path)
            assert record is not None
            damage(bridge.layout, record)
        assert await bridge.checkpoints.look_for_files("", limit=2) != ""
        assert await bridge.checkpoints.look_for_files(kept, limit=2) == ""
        assert await bridge.checkpoints.look_for_files("", limit=9) == ""

        of_user = await ann.get("/checkpoints")
        of_run = await ann.get(f"/training_runs/{run}/checkpoints", limit=5)
        [shown] = (await ann.get("/training_runs"))["training_runs"]

        assert [each["tinker_path"] for each in of_user["checkpoints"]] == [kept]
        assert [each["tinker_path"] for each in of_run["checkpoints"]] == [kept]
        assert (of_user["cursor"]["total_count"], of_run["cursor"]["total_count"]) == (1, 1)
        assert (shown["last_checkpoint"]["tinker_path"], shown["last_sampler_checkpoint"]) == (kept, None)
        assert await ann.get(f"/training_runs/{run}") == shown
        for path in gone:
            answer = await ann.post("/weights_info", 404, tinker_path=path)
            assert "its files are gone from the server's disk" in answer["detail"]
            opening = {"session_id": session, "sampling_session_seq_id": 1, "model_path": path}
            await ann.post("/create_sampling_session", 404, **opening)
            await ann.ask("DELETE", rest(path))
            assert bridge.store.find(CheckpointRecord, path) is None

    with_bridge(tmp_path, test)


def test_a_disk_that_refuses_does_not_make_checkpoints_disappear(tmp_path: Path) -> None:
    (tmp_path / "exports").mkdir()
    record = CheckpointRecord(
        id="p",
        tenant=TenantId("ann"),
        parent="r",
        created_unix_s=0.0,
        kind="external",
        name="n",
        adapter=AdapterId("ad-1"),
        base_model="tiny",
        lora=LoraSpec(rank=4, alpha=8.0, seed=1),
        token="t" * 300,  # a name that no disk takes
    )

    assert is_whole(StateLayout(tmp_path), record)
    assert not is_whole(StateLayout(tmp_path), replace(record, token="t"))


def test_whoever_lists_a_page_reads_no_other_records(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        session = await ann.session(project_id="p1")
        run = await ann.run(session)
        for number in range(4):
            await ann.save(run, number + 1, f"c{number}")
            await ann.run(session, number + 1)
        expired = bridge.store.find(CheckpointRecord, f"tinker://{run}/weights/c2")
        assert expired is not None
        bridge.store.put(replace(expired, expires_unix_s=1.0))
        unread = [await ann.save(run, 5, "new"), f"tinker://{run}/weights/c0"]
        oldest = run
        with sqlite3.connect(bridge.layout.tinker_store) as db:
            for table, ids in (("checkpoints", unread), ("runs", [oldest])):
                for id_ in ids:
                    db.execute(f"UPDATE {table} SET body = '{{}}' WHERE id = ?", (id_,))

        checkpoints = await ann.get("/checkpoints", limit=2, offset=1)
        runs = await ann.get("/training_runs", limit=3, project_id="p1")

        assert [each["checkpoint_id"] for each in checkpoints["checkpoints"]] == ["weights/c3", "weights/c1"]
        assert checkpoints["cursor"]["total_count"] == 4
        assert [each["training_run_id"][-1] for each in runs["training_runs"]] == ["4", "3", "2"]
        assert runs["cursor"]["total_count"] == 5

    with_bridge(tmp_path, test)


def test_all_is_still_listed_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        bus = InMemoryBus()
        async with bridge_on(tmp_path, bus) as bridge:
            ann = User(bridge, "ann")
            session = await ann.session(display_name="mine", user_metadata={"a": 1})
            run = await ann.run(session)
            path = await ann.save(run, 1, "a")
            asked = [
                "/training_runs",
                f"/training_runs/{run}",
                f"/training_runs/{run}/checkpoints",
                "/checkpoints",
                "/sessions",
                f"/sessions/{session}",
            ]
            before = [await ann.get(each) for each in asked]
        async with bridge_on(tmp_path, bus) as again:
            ann.http = client(again, ann.key)

            after = [await ann.get(each) for each in asked]

            assert after == before
            assert (await ann.post("/weights_info", tinker_path=path))["lora_rank"] == 8

    asyncio.run(test())


def test_a_run_that_the_trainer_lost_is_shown_as_corrupted(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run()

        bridge.runs.lose(run)

        assert (await ann.get(f"/training_runs/{run}"))["corrupted"] is True

    with_bridge(tmp_path, test)


def test_what_is_anothers_answers_as_if_it_were_not_there(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann, ben = User(bridge, "ann"), User(bridge, "ben")
        session = await ann.session()
        run = await ann.run(session)
        path = await ann.save(run, 1, "a")
        opened = await ann.post(
            "/create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny"
        )
        sampler = opened["sampling_session_id"]
        asks = [
            ("GET", "/training_runs/{run}", None),
            ("GET", "/training_runs/{run}/checkpoints", None),
            ("GET", "/sessions/{session}", None),
            ("GET", "/samplers/{sampler}", None),
            ("POST", "/weights_info", {"tinker_path": "tinker://{run}/weights/a"}),
            (
                "POST",
                "/copy_weights",
                {"source_path": "tinker://{run}/weights/a", "destination_project_id": "p"},
            ),
            ("DELETE", "/training_runs/{run}/checkpoints/weights/a", None),
            ("POST", "/training_runs/{run}/checkpoints/weights/a/publish", None),
            ("DELETE", "/training_runs/{run}/checkpoints/weights/a/publish", None),
            ("PUT", "/training_runs/{run}/checkpoints/weights/a/ttl", {"ttl_seconds": None}),
            ("PUT", "/sessions/{session}/project", {"project_id": "p"}),
            ("GET", "/training_runs/{run}/checkpoints/external_weights/a/external_weights_urls", None),
        ]

        theirs = {"run": run, "session": session, "sampler": sampler}
        nobodys = {"run": "no:run", "session": "no-session", "sampler": "no:sampler"}
        for method, address, body in asks:
            heard = []
            for ids in (theirs, nobodys):
                sent = body and {key: value and value.format(**ids) for key, value in body.items()}
                answer = await ben.ask(method, address.format(**ids), 404, json=sent)
                for id_ in sorted(ids.values(), key=len, reverse=True):
                    answer["detail"] = answer["detail"].replace(id_, "ID")
                heard.append(answer)

            assert heard[0] == heard[1], (method, address)

        assert (await ann.get(f"/training_runs/{run}"))["last_checkpoint"]["tinker_path"] == path
        for listing in ("/training_runs", "/checkpoints", "/sessions"):
            assert run not in str(await ben.get(listing))

    with_bridge(tmp_path, test)


def test_a_public_checkpoint_can_be_read_by_others_and_shows_no_more_than_itself(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann, ben = User(bridge, "ann"), User(bridge, "ben")
        run = await ann.run(user_metadata={"renderer": "qwen3"})
        public = await ann.save(run, 1, "public")
        private = await ann.save(run, 2, "private")
        await ann.post(rest(public) + "/publish")

        info = await ben.post("/weights_info", tinker_path=public)
        seen = await ben.get(f"/training_runs/{run}")
        listed = await ben.get(f"/training_runs/{run}/checkpoints")

        assert info == {
            "base_model": "tiny",
            "is_lora": True,
            "lora_rank": 8,
            "train_unembed": True,
            "train_mlp": True,
            "train_attn": True,
            "optimizer_config": {"type": "adamw"},
        }
        assert seen["last_checkpoint"]["tinker_path"] == public
        assert (seen["user_metadata"], seen["model_owner"], seen["corrupted"]) == (None, "", False)
        assert seen["last_request_time"] == seen["last_checkpoint"]["time"]
        assert (await ann.get(f"/training_runs/{run}"))["user_metadata"] == {"renderer": "qwen3"}
        assert [each["tinker_path"] for each in listed["checkpoints"]] == [public]
        await ben.post("/weights_info", 404, tinker_path=private)
        await ben.ask("DELETE", rest(public), 404)
        await ann.ask("DELETE", rest(public) + "/publish")
        await ben.get(f"/training_runs/{run}", 404)
        await ben.post("/weights_info", 404, tinker_path=public)

    with_bridge(tmp_path, test)


@pytest.mark.parametrize("path", ["/training_runs", "/checkpoints", "/sessions"])
@pytest.mark.parametrize(
    "bounds",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": "many"},
        {"offset": -1},
        {"offset": 2**70},
        {"limit": ""},
    ],
)
def test_pages_out_of_bounds_are_refused_with_a_body(
    tmp_path: Path, path: str, bounds: dict[str, object]
) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        answer = await User(bridge, "ann").http.get(API + path, params=bounds)

        assert answer.status_code in (400, 422)
        assert answer.json()["detail"]

    with_bridge(tmp_path, test)


@pytest.mark.parametrize("path", ["", "tinker://a/b", "tinker://a/weights/../x", "/etc/passwd"])
def test_what_is_no_tinker_path_is_refused(tmp_path: Path, path: str) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        answer = await User(bridge, "ann").post("/weights_info", 400, tinker_path=path)

        assert "is no checkpoint path" in answer["detail"]

    with_bridge(tmp_path, test)


def test_an_expired_checkpoint_is_gone_at_once_and_the_round_deletes_it(tmp_path: Path) -> None:
    async def test(bridge: Bridge, bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        run = await ann.run()
        path = await ann.save(run, 1, "a", ttl_seconds=3600)
        record = bridge.checkpoints.owned(TenantId("ann"), path)
        bridge.store.put(replace(record, expires_unix_s=1.0))

        assert (await ann.get("/checkpoints"))["checkpoints"] == []
        assert (await ann.get(f"/training_runs/{run}"))["last_checkpoint"] is None
        await ann.post("/weights_info", 404, tinker_path=path)
        await one_round(bridge)

        assert bridge.store.all(CheckpointRecord) == []
        assert bus.kinds()[-1] == "delete_checkpoint"

    with_bridge(tmp_path, test)


def test_sessions_and_samplers_tell_what_they_hold(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        older = await ann.session()
        session = await ann.session(display_name="mine", user_metadata={"a": [1], "b": "two"})
        run = await ann.run(session)
        path = await ann.save_for_sampler(run, 1, "s")
        for number, what in enumerate(({"model_path": path}, {"base_model": "tiny"})):
            await ann.post(
                "/create_sampling_session", session_id=session, sampling_session_seq_id=number, **what
            )
        unnamed = await ann.work(
            "/save_weights_for_sampler", model_id=run, seq_id=2, sampling_session_seq_id=2
        )

        shown = await ann.get(f"/sessions/{session}", access_scope="owned")

        samplers = [f"{session}:sample:{number}" for number in range(3)]
        assert shown["training_run_ids"] == [run]
        assert sorted(shown["sampler_ids"]) == samplers
        assert unnamed["sampling_session_id"] == samplers[2]
        assert (shown["display_name"], shown["user_metadata"]) == ("mine", {"a": "[1]", "b": "two"})
        assert await ann.get(f"/samplers/{samplers[0]}") == {
            "sampler_id": samplers[0],
            "base_model": "tiny",
            "model_path": path,
        }
        assert (await ann.get(f"/samplers/{samplers[1]}"))["model_path"] is None
        assert await ann.get("/sessions", limit=1) == {"sessions": [session]}
        assert await ann.get("/sessions", limit=5, offset=1) == {"sessions": [older]}
        assert bridge.store.find(RunRecord, run) is not None

    with_bridge(tmp_path, test)
