"""What one body may cost: its size by what it is for, its depth, and metadata that is kept."""

from pathlib import Path
from typing import Any

import pytest
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import API, User, client, with_bridge
from loractl.tinker_bridge.bridge import Bridge

MIB = 2**20


@pytest.mark.parametrize(
    ("path", "keyed", "size", "status"),
    [
        ("/create_session", True, 5 * MIB, 400),
        ("/retrieve_future", True, 5 * MIB, 400),
        ("/forward_backward", False, 5 * MIB, 401),
        ("/forward_backward", True, 60 * MIB, 404),
        ("/forward_backward", True, 70 * MIB, 400),
        ("/asample", True, 5 * MIB, 404),
        ("/asample", True, 70 * MIB, 400),
    ],
)
def test_a_body_is_as_large_as_its_use_and_its_key_allow(
    tmp_path: Path, path: str, keyed: bool, size: int, status: int
) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        http = User(bridge, "ann").http if keyed else client(bridge)
        body = (
            b'{"model_id": "none", "sampling_session_id": "none", "seq_id": 1, "x": "' + b"x" * size + b'"}'
        )

        answer = await http.post(API + path, content=body, headers={"content-type": "application/json"})

        assert answer.status_code == status, answer.text
        assert ("larger than" in answer.json()["detail"]) == (status == 400)

    with_bridge(tmp_path, test)


def test_a_pass_in_protobuf_may_be_larger_than_one_in_json(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        unknown = b"\x7a" + varint(70 * MIB) + bytes(70 * MIB)

        answer = await user.http.post(
            API + "/forward_backward",
            content=b"\x0a\x04none" + unknown,
            headers={"content-type": "application/x-protobuf"},
        )

        assert answer.status_code == 404, answer.text

    with_bridge(tmp_path, test)


def varint(value: int) -> bytes:
    low = [value >> shift & 127 for shift in range(0, value.bit_length(), 7)]
    return bytes([*(each | 128 for each in low[:-1]), low[-1]])


def nested(levels: int) -> Any:
    value: Any = "\N{BULLET}"
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("metadata", [nested(40), {"a": "x" * 300_000}])
def test_metadata_that_would_burden_every_list_is_refused(tmp_path: Path, metadata: Any) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")

        refused = await user.post("/create_session", 422, tags=[], user_metadata=metadata, sdk_version="")
        session = await user.session(user_metadata=nested(30))
        found = await user.post("/sessions/search")

        assert refused["detail"].startswith("user_metadata: ")
        assert [each["session_id"] for each in found["sessions"]] == [session]

    with_bridge(tmp_path, test)


def test_depth_is_refused_wherever_it_shows(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        found = set()
        for levels in range(880, 1000, 2):
            body = (
                b'{"model_id": "m", "seq_id": 1, "x": ' + b"[" * levels + b'"\\ud800"' + b"]" * levels + b"}"
            )
            found.add((await user.http.post(API + "/optim_step", content=body)).status_code)

        assert found == {400}

    with_bridge(tmp_path, test)


def test_a_rank_that_no_message_can_carry_is_the_callers_mistake(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        body = {"session_id": await user.session(), "model_seq_id": 0, "base_model": "tiny"}

        refused = await user.post("/create_model", 422, lora_config={"rank": 2**64}, **body)

        assert refused["category"] == "user"

    with_bridge(tmp_path, test)


@pytest.mark.parametrize(
    "field",
    [
        {"tags": ["x" * 257]},
        {"sdk_version": "x" * 257},
        {"project_id": "x" * 257},
        {"display_name": "x" * 1025},
    ],
)
def test_what_is_kept_of_a_session_is_short(tmp_path: Path, field: dict[str, Any]) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        answer = await User(bridge, "ann").post("/create_session", 422, **field)

        assert next(iter(field)) in answer["detail"]

    with_bridge(tmp_path, test)


def test_a_long_word_at_the_end_of_a_session_is_cut(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        await user.post(f"/sessions/{session}/finish", reason={"type": "errored"}, detail="x" * 10_000)

        (found,) = (await user.post("/sessions/search"))["sessions"]
        assert len(found["status"]["detail"]) == 4096

    with_bridge(tmp_path, test)


def test_what_is_attached_to_a_checkpoint_is_modest(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        run = await user.run()

        saved = await user.work(
            "/save_weights", model_id=run, seq_id=1, path="a", user_metadata={"x": "x" * 300_000}
        )

        assert "user_metadata" in saved["error"]

    with_bridge(tmp_path, test)


def test_metadata_of_many_small_values_is_refused(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        many: Any = {"a": [[]] * 5000}

        refused = await User(bridge, "ann").post("/create_session", 422, user_metadata=many)

        assert "at most 4096" in refused["detail"]

    with_bridge(tmp_path, test)


def test_one_tenants_sessions_have_a_bound_and_finished_ones_make_room(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        ann, ben = User(bridge, "ann"), User(bridge, "ben")
        first = await ann.session()
        await ann.session()

        refused = await ann.post("/create_session", 429, tags=[], user_metadata={}, sdk_version="")

        assert "quotas.sessions" in refused["detail"]
        assert await ben.session()
        await ann.post(f"/sessions/{first}/finish", reason={"type": "success"})
        assert await ann.session()

    with_bridge(tmp_path, test, "quotas.sessions=2")
