"""Samples as futures: what is lost with a sampler is asked for again, a few times."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loractl.bus.errors import ActorRestarting, AnotherBase, EngineFailed, LoractlError, VersionNotFound
from loractl.bus.ids import TenantId
from loractl.bus.messages import Message, Sample, SampleResult
from loractl.client.tiny_model import _tokenizer
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, bridge_on, client, rest

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


async def opened(user: User, **of: str) -> str:
    """A sampling session, in a session of its own."""
    session = await user.session()
    answer = await user.post("/create_sampling_session", session_id=session, sampling_session_seq_id=0, **of)
    sampler: str = answer["sampling_session_id"]
    return sampler


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
            sampler = await opened(user, base_model="tiny")
            result = await sampled(user, sampler)
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
            sampler = await opened(reader, model_path=path)
            return path, await sampled(reader, sampler)

    path, result = asyncio.run(asyncio.wait_for(story(), 60))

    assert "secret" not in result["error"]
    assert result["error"].endswith(f"{path} was deleted, or expired")


def test_a_sample_over_another_base_model_says_how_to_get_its_source_back(tmp_path: Path) -> None:
    async def story() -> Any:
        bus = CrashingBus(AnotherBase("adapter 'secret' is on disk, but belongs to another base model"))
        async with bridge_on(tmp_path, bus) as bridge:
            user = User(bridge, "ann")
            path = await user.save_for_sampler(await user.run(), 1, "kept")
            sampler = await opened(user, model_path=path)
            return await sampled(user, sampler)

    result = asyncio.run(asyncio.wait_for(story(), 60))

    assert "secret" not in result["error"]
    assert "is kept, and belongs to another base model than the server has now" in result["error"]


@pytest.mark.parametrize("again", [False, True])
def test_what_is_not_public_any_more_is_not_sampled_from_any_more(tmp_path: Path, again: bool) -> None:
    async def story() -> Any:
        bus = CrashingBus()
        async with bridge_on(tmp_path, bus) as bridge:
            owner, reader = User(bridge, "ann"), User(bridge, "ben")
            run = await owner.run()
            path = await owner.save_for_sampler(run, 1, "shared")
            await owner.post(f"{rest(path)}/publish")
            sampler = await opened(reader, model_path=path)
            await owner.ask("DELETE", f"{rest(path)}/publish")
            if again:  # another one of the same name says nothing of the first
                await owner.ask("DELETE", rest(path))
                assert await owner.save_for_sampler(run, 2, "shared") == path
                await owner.post(f"{rest(path)}/publish")
            result = await sampled(reader, sampler)
        assert "sample" not in bus.kinds()
        return result

    result = asyncio.run(asyncio.wait_for(story(), 60))

    assert result["error"].endswith("is not public any more")


@pytest.mark.parametrize("published", [False, True])
def test_a_bridge_that_was_started_without_a_trainer_samples_the_base_model_and_versions(
    tmp_path: Path, published: bool
) -> None:
    async def story() -> Any:
        bus = CrashingBus()
        async with bridge_on(tmp_path, bus) as bridge:
            user = User(bridge, "ann")
            path = await user.save_for_sampler(await user.run(), 1, "kept") if published else None
            session = await user.session()
        bus.given_up = True
        async with bridge_on(tmp_path, bus) as bridge:
            user.http = client(bridge, user.key)
            opened = await user.post(
                "/create_sampling_session",
                session_id=session,
                sampling_session_seq_id=0,
                base_model="tiny",
                model_path=path,
            )
            return await sampled(user, opened["sampling_session_id"])

    result = asyncio.run(asyncio.wait_for(story(), 60))

    assert [each["tokens"] for each in result["sequences"]] == [[7]], result


def test_without_a_trainer_that_ever_was_ready_a_version_is_not_said_to_be_gone(tmp_path: Path) -> None:
    async def story() -> Any:
        bus = CrashingBus(VersionNotFound("there is none"))
        async with bridge_on(tmp_path, bus) as bridge:
            user = User(bridge, "ann")
            path = await user.save_for_sampler(await user.run(), 1, "kept")
            sampler = await opened(user, model_path=path)
        bus.given_up = True
        bus.adapters.clear()
        async with bridge_on(tmp_path, bus) as bridge:
            user.http = client(bridge, user.key)
            return await sampled(user, sampler)

    result = asyncio.run(asyncio.wait_for(story(), 60))

    assert "the trainer was given up" in result["error"]


def test_text_is_sampled_from_the_base_model_without_a_trainer(tmp_path: Path) -> None:
    async def story() -> Any:
        bus = CrashingBus()
        bus.given_up, bus.model_path = True, str(tmp_path / "model")
        _tokenizer().save_pretrained(bus.model_path, save_jinja_files=False)
        async with bridge_on(tmp_path / "state", bus) as bridge:
            return await User(bridge, "ann").http.post("/sample", json={"prompt": "What is the sea?"})

    answer = asyncio.run(asyncio.wait_for(story(), 60))

    assert (answer.status_code, answer.json().get("texts")) == (200, ["a"]), answer.text
