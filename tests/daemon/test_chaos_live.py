"""Our own clients against a daemon with `--chaos`: each request is answered, and runs once."""

import asyncio
import json
import signal
from dataclasses import replace

from loractl.bus.async_client import AsyncClient
from loractl.bus.config import Config
from loractl.bus.messages import DaemonStatus, Echoed, GetStatus
from loractl.tests.daemon.conftest import Start
from loractl.tests.daemon.real_daemon import PATIENCE_S, ask, until

COUNT = 300


def unruly(config: Config, seed: int = 7, **more: float) -> Config:
    return replace(config, daemon=replace(config.daemon, chaos=seed, **more))


def test_every_request_is_answered_though_messages_get_lost(start: Start, config: Config):
    daemon = start(settings=unruly(config)).until(trainer="ready")

    async def talk() -> list[str]:
        async with AsyncClient(daemon.config) as client:
            asked = [client.submit(ask(str(number))) for number in range(COUNT)]
            answers = [await pending.result(PATIENCE_S) for pending in asked]
        assert all(isinstance(answer, Echoed) for answer in answers)
        return [answer.payload.tobytes().decode() for answer in answers]

    assert asyncio.run(talk()) == [str(number) for number in range(COUNT)]
    with daemon.client() as client:
        assert [client.request(ask(text), timeout_s=PATIENCE_S).kind for text in "abc"] == ["echoed"] * 3
        status = client.request(GetStatus(), timeout_s=PATIENCE_S)
    assert isinstance(status, DaemonStatus)
    assert status.chaos.startswith("seed 7: ")
    assert status.chaos.endswith("; 0 promises broken")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    said = [json.loads(line) for line in (daemon.layout.logs / "daemon.log").read_text().splitlines()]
    acts = {each["act"] for each in said if each["event"] == "chaos.acted"}
    assert acts >= {"dropped", "duplicated", "delayed", "reordered"}
    assert said[-2]["event"] == "chaos.ended"


def test_an_actor_that_chaos_killed_is_started_again(start: Start, config: Config):
    # This seed kills after three seconds, and then not for half a minute.
    daemon = start(settings=unruly(config, seed=1, restart_max_s=0.05)).until(trainer="ready")

    def killed() -> bool:
        return "'act': 'killed'" in repr(
            [json.loads(line) for line in (daemon.layout.logs / "daemon.log").read_text().splitlines()]
        )

    assert until(killed)
    daemon.until(trainer="ready")
    assert daemon.phases["trainer"][1] >= 1
