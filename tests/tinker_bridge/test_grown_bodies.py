"""Bodies that grow to much more than was sent: read in a thread, counted as what they grow to, and not held
while there is no room for them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import zstandard
from loractl.bus.errors import InvalidRequest
from loractl.bus.ids import LaneId, RequestId, TenantId
from loractl.bus.messages import ForwardBackward, Message, PassResult
from loractl.tests.tinker_bridge.in_memory import User
from loractl.tests.tinker_bridge.test_waiting import Refused, SlowBus, polled, served
from loractl.tinker_bridge.apart import Apart
from loractl.tinker_bridge.array_room import ArrayRoom, Turn
from loractl.tinker_bridge.wire import peek_forward_backward
from loractl.tinker_bridge.wire import tinker_pb2 as pb

PROTOBUF = "application/x-protobuf"
ANN, BEN = TenantId("ann"), TenantId("ben")


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def body_of(model: str, seq: int, positions: int) -> bytes:
    """Zeros, which zstd makes next to nothing of."""
    request = pb.ForwardBackwardRequest(model_id=model, seq_id=seq, loss_fn="cross_entropy")
    datum = request.data.add()
    datum.model_input.add().encoded_text.tokens = bytes(4 * positions)
    targets = datum.loss_fn_inputs["target_tokens"]
    targets.dense, targets.dtype = bytes(4 * positions), pb.DTYPE_INT32
    return request.SerializeToString()


class PassBus(SlowBus):
    """Takes passes, too. let_go_of: set when the arrays of one that was sent here are gone."""

    def __init__(self, *kinds: type[Message], full: int = 0) -> None:
        super().__init__(*kinds, full=full)
        self._arrays: list[Any] = []
        self.sent = 0
        self.refused, self.let_go_of = asyncio.Event(), asyncio.Event()

    def submit(
        self, body: Message, *, request: RequestId | None = None, tenant: TenantId | None = None
    ) -> Any:
        if isinstance(body, ForwardBackward):
            self.sent += 1
            self._arrays.append(ref(body.targets, lambda _: self.let_go_of.set()))
        answer = super().submit(body, request=request, tenant=tenant)
        if isinstance(answer, Refused):
            self.refused.set()
        return answer

    def _answer(self, body: Message, tenant: TenantId) -> Message:
        if isinstance(body, ForwardBackward):
            zeros = np.zeros(body.tokens.size, np.float32)
            return PassResult(logprobs=zeros, loss_terms=zeros, metrics={"loss:sum": 0.0})
        return super()._answer(body, tenant)


async def sent(user: User, body: bytes, encoding: str = "zstd", status: int = 200) -> dict[str, Any]:
    content = zstandard.compress(body) if encoding else body
    headers = {"content-type": PROTOBUF, **({"content-encoding": encoding} if encoding else {})}
    answer = await user.http.post("/api/v1/forward_backward", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    fields: dict[str, Any] = answer.json()
    return fields


def test_a_compressed_body_is_read_in_a_thread(tmp_path: Path) -> None:
    readers = []

    class Watched(Apart):
        async def run(self, tenant: TenantId, work: Any) -> Any:
            def watched() -> Any:
                readers.append(threading.current_thread())
                return work()

            return await super().run(tenant, watched)

    async def test() -> None:
        async with served(tmp_path, PassBus()) as (bridge, user):
            object.__setattr__(bridge, "apart", Watched())
            started = await sent(user, body_of(await user.run(), 1, 1000))
            await user.post("/retrieve_future", request_id=started["request_id"])

            assert len(readers) == 2  # a look, and all of it
            assert threading.main_thread() not in readers

    run(test)


def test_bytes_under_way_count_as_what_they_are_in_plain(tmp_path: Path) -> None:
    async def test() -> None:
        bus = PassBus(ForwardBackward)
        async with served(tmp_path, bus, "quotas.held_bytes=300000") as (_, user):
            model = await user.run()
            await sent(user, body_of(model, 1, 30_000))

            refused = await sent(user, body_of(model, 2, 30_000), status=429)

            assert "240," in refused["detail"]

    run(test)


def test_arrays_are_let_go_of_while_the_daemon_has_no_room(tmp_path: Path) -> None:
    async def test() -> None:
        bus = PassBus(ForwardBackward, full=1)
        async with served(tmp_path, bus) as (_, user):
            started = await sent(user, body_of(await user.run(), 1, 10_000))
            await bus.refused.wait()
            await bus.let_go_of.wait()
            assert bus.sent == 1  # and not yet sent again

            held = await bus.held.get()
            held.free.set()
            result = await user.http.post(
                "/api/v1/retrieve_future", json={"request_id": started["request_id"]}
            )
            assert result.json()["metrics"] == {"loss:sum": 0.0}

    run(test)


def test_a_second_grown_one_waits_until_the_first_is_done(tmp_path: Path) -> None:
    async def test() -> None:
        bus = PassBus(ForwardBackward)
        async with served(tmp_path, bus, "quotas.held_bytes=250000") as (_, user):
            model = await user.run()
            # Each 80 kB in plain, and 200 kB of arrays.
            ids = [(await sent(user, body_of(model, seq, 10_000)))["request_id"] for seq in (1, 2)]
            first = await bus.held.get()

            waiting = await polled(user, ids[1])

            assert waiting["queue_state_reason"] == "arrays of your other operations take all the room"
            assert bus.held.empty()
            first.free.set()
            (await bus.held.get()).free.set()
            for each in ids:
                assert (await user.post("/retrieve_future", request_id=each))["metrics"]

    run(test)


def test_what_is_first_in_its_lane_goes_where_nothing_else_would() -> None:
    room = ArrayRoom(100)
    late, first, other = (Turn(ANN, LaneId(lane), seq) for lane, seq in (("a", 2), ("a", 1), ("b", 1)))

    assert room.enter(late, 90)  # came before the one that it will wait for
    assert room.enter(first, 90)
    assert not room.enter(other, 90)  # first goes on
    assert room.enter(Turn(BEN, LaneId("c"), 1), 90)
    room.leave(first)
    assert not room.enter(other, 90)  # late is first in its lane now
    room.leave(late)
    assert room.enter(other, 90)
    room.leave(other)
    assert room.held_bytes(ANN) == 0


def test_one_piece_of_a_tenants_work_at_a_time_and_two_of_all() -> None:
    async def test() -> None:
        apart, free = Apart(), threading.Event()
        under_way: list[str] = []
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work(name: str) -> None:
            under_way.append(name)
            if len(under_way) == 2:
                loop.call_soon_threadsafe(begun.set)
            free.wait(10)

        names = ["ann"] * 5 + ["ben", "cay"]
        tasks = [
            asyncio.ensure_future(apart.run(TenantId(name), lambda name=name: work(name))) for name in names
        ]
        await begun.wait()
        assert under_way == ["ann", "ben"]
        free.set()
        await asyncio.gather(*tasks)
        assert under_way[2] == "cay"

    run(test)


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a\x01m" + b"\x1a\x00" * 300_000,  # empty datums
        b"\x0a\x01m" + b"\x08\x00" * 300_000,  # fields that nobody knows
        pb.ForwardBackwardRequest(
            model_id="m", data=[pb.Datum(model_input=[pb.Chunk()] * 300_000)]
        ).SerializeToString(),
    ],
)
def test_a_body_of_very_many_parts_is_refused_before_it_is_parsed(body: bytes) -> None:
    for sent_body, encoding in ((body, None), (zstandard.compress(body), "zstd")):
        with pytest.raises(InvalidRequest, match="262144 parts"):
            peek_forward_backward(sent_body, PROTOBUF, encoding)


def test_a_json_body_of_very_many_parts_is_refused_before_it_is_parsed() -> None:
    body = b'{"model_id": "m", "forward_backward_input": {"data": [' + b"{}," * 300_000 + b"{}]}}"

    with pytest.raises(InvalidRequest, match="262144 parts"):
        peek_forward_backward(body, "application/json")


def test_plain_and_sparse_parts_are_told_apart() -> None:
    plain = pb.ForwardBackwardRequest.FromString(body_of("m", 1, 3))
    sparse = pb.ForwardBackwardRequest.FromString(body_of("m", 1, 3))
    sparse.data[0].loss_fn_inputs["target_tokens"].sparse_csr.values = b""

    assert not peek_forward_backward(plain.SerializeToString(), PROTOBUF).heavy
    assert peek_forward_backward(sparse.SerializeToString(), PROTOBUF).heavy


def test_what_is_given_up_in_a_thread_has_its_place_until_it_is_done() -> None:
    async def test() -> None:
        apart, free = Apart(), threading.Event()
        begun: list[int] = []

        def work() -> None:
            begun.append(1)
            free.wait(30)

        tasks = [asyncio.create_task(apart.run(ANN, work)) for _ in range(3)]
        await asyncio.sleep(0.1)
        tasks[0].cancel()
        await asyncio.sleep(0.1)
        assert (len(begun), tasks[0].done()) == (1, False)
        free.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in found] == [asyncio.CancelledError, type(None), type(None)]

    asyncio.run(asyncio.wait_for(test(), 30))


def test_work_on_much_is_done_in_a_thread_and_on_little_at_once() -> None:
    async def test() -> None:
        apart, here = Apart(), threading.get_ident()

        assert await apart.when_large(ANN, 32 * 2**10, threading.get_ident) == here
        assert await apart.when_large(ANN, 32 * 2**10 + 1, threading.get_ident) != here

    asyncio.run(asyncio.wait_for(test(), 30))
