"""A tenant that may keep no more on disk reads why, at once, whatever it asked to be kept."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from loractl.bus.errors import DiskQuotaExceeded
from loractl.bus.ids import TenantId
from loractl.bus.messages import Message, PublishAdapter, SaveCheckpoint
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, bridge_on

WHY = "90 of at most 100 bytes (quotas.checkpoint_bytes)"


class FullBus(InMemoryBus):
    def _answer(self, body: Message, tenant: TenantId) -> Message:
        if isinstance(body, SaveCheckpoint | PublishAdapter):
            raise DiskQuotaExceeded(WHY)
        return super()._answer(body, tenant)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/save_weights", {"path": "a"}),
        ("/save_weights_for_sampler", {"path": "a"}),
        ("/save_weights_for_sampler", {"sampling_session_seq_id": 0}),
    ],
    ids=["state", "named", "unnamed"],
)
def test_what_finds_no_room_on_disk_fails_with_the_reason_and_leaves_no_name(
    tmp_path: Path, route: str, body: dict[str, Any]
) -> None:
    async def story() -> None:
        async with bridge_on(tmp_path, FullBus()) as bridge:
            user = User(bridge, "ann")
            run = await user.run()

            refused = await user.work(route, model_id=run, seq_id=1, **body)

            assert refused == {"error": WHY, "category": "user"}
            assert bridge.checkpoints.of_run(run) == []

    asyncio.run(asyncio.wait_for(story(), 60))
