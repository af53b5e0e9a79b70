"""Samples as futures: what is lost with a sampler is asked for again, a few times."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loractl.bus.errors import ActorRestarting, EngineFailed, LoractlError, VersionNotFound
from loractl.bus.ids import TenantId
from loractl.bus.messages import Message, Sample, SampleResult
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, bridge_on, rest

_RESTARTING = ActorRestarting("sampler-0 died while it held this sample")


class CrashingBus(InMemoryBus):
    """Samples end with these errors, one after the other, then with a result."""

    def __init__(self, *errors: LoractlError) -> None:
        super().__init__()
        self._errors = list(errors)

    def _answer(self, body: Message, tenant: TenantId) -> Message:
        if not isinstance(body, Sample):
            return super()._answer(body, tenant)
        if self._errors:
            raise self._errors.pop(0)
        return SampleResult(
            version=0,
            engine="vllm",
            lengths=np.array([1]),
            tokens=np.array([7]),
            logprobs=np.zeros(1, np.float32),
            texts=("a",),
            stop_reasons=("length",),
            prompt_logprobs=np.zeros(0, np.float32),
        )


async def sampled(user: User, sampler: str) -> Any:
    return await user.work(
        "/asample",
        sampling_session_id=sampler,
        seq_id=0,
        prompt={"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        sampling_params={"max_tokens": 1},
    )


@pytest.mark.parametrize(
    ("errors", "asked", "fails"),
    [
        ((_RESTARTING, EngineFailed("the engine died")), 3, False),
        ((_RESTARTING,) * 4, 4, True),
        ((VersionNotFound("gone"),), 1, True),
    ],
)
def test_a_sample_that_was_lost_with_its_sampler_is_asked_for_again(
    tmp_path: Path, errors: tuple[LoractlError, ...], asked: int, fails: bool
) -> None:
    async def story() -> Any:
        bus = CrashingBus(*errors)
        async with bridge_on(tmp_path, bus) as bridge:
            user = User(bridge, "ann")
            session = await user.session()
            opened = await user.post(
                "/create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny"
            )
            result = await sampled(user, opened["sampling_session_id"])
        assert bus.kinds().count("sample") == asked
        return result

    result = asyncio.run(asyncio.wait_for(story(), 60))

    assert ("error" in result) == fails, json.dumps(result)


def test_a_sample_from_a_checkpoint_that_went_says_so_and_names_nothing_of_its_owners(tmp_path: Path) -> None:
    async def story() -> Any:
        bus = CrashingBus(VersionNotFound("adapter 'secret' has no version 1; there is 2, 3"))
        async with bridge_on(tmp_path, bus) as bridge:
            owner, reader = User(bridge, "ann"), User(bridge, "ben")
            path = await owner.save_for_sampler(await owner.run(), 1, "shared")
            await owner.post(f"{rest(path)}/publish")
            session = await reader.session()
            opened = await reader.post(
                "/create_sampling_session", session_id=session, sampling_session_seq_id=0, model_path=path
            )
            return path, await sampled(reader, opened["sampling_session_id"])

    path, result = asyncio.run(asyncio.wait_for(story(), 60))

    assert "secret" not in result["error"]
    assert result["error"].endswith(f"{path} was deleted, or expired")


@pytest.mark.parametrize("again", [False, True])
def test_what_is_not_public_any_more_is_not_sampled_from_any_more(tmp_path: Path, again: bool) -> None:
    async def story() -> Any:
        bus = CrashingBus()
        async with bridge_on(tmp_path, bus) as bridge:
            owner, reader = User(bridge, "ann"), User(bridge, "ben")
            run = await owner.run()
            path = await owner.save_for_sampler(run, 1, "shared")
            await owner.post(f"{rest(path)}/publish")
            session = await reader.session()
            opened = await reader.post(
                "/create_sampling_session", session_id=session, sampling_session_seq_id=0, model_path=path
            )
            await owner.ask("DELETE", f"{rest(path)}/publish")
            if again:  # another one of the same name says nothing of the first
                await owner.ask("DELETE", rest(path))
                assert await owner.save_for_sampler(run, 2, "shared") == path
                await owner.post(f"{rest(path)}/publish")
            result = await sampled(reader, opened["sampling_session_id"])
        assert "sample" not in bus.kinds()
        return result

    result = asyncio.run(asyncio.wait_for(story(), 60))

    assert result["error"].endswith("is not public any more")
