"""Two tenants and an attacker: nothing of another's can be told from what does not exist, wherever it is asked."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loractl.daemon.routing import DESTINATION_BY_KIND
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import bridge_on
from loractl.tinker_bridge.app import create_app

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from attacking import bus_walk, http_walk, kinds, routes
from attacking.scene import Scene, scene


@pytest.fixture(scope="module")
def running() -> Iterator[Scene]:
    with scene() as service:
        yield service


def test_every_kind_that_the_broker_routes_is_tried():
    assert {kind.kind for kind in kinds.ATTEMPTS} == set(DESTINATION_BY_KIND)


def test_every_route_is_tried(tmp_path: Path):
    async def whole() -> set[tuple[str, str]]:
        async with bridge_on(tmp_path, InMemoryBus()) as bridge:
            return http_walk.application_routes(create_app(bridge).routes)

    known = {*routes.OPEN, *routes.LISTS, *routes.ATTEMPTS}

    assert asyncio.run(whole()) == known
    assert len(known) == len(routes.OPEN) + len(routes.LISTS) + len(routes.ATTEMPTS)


@pytest.mark.parametrize("walk", [bus_walk.walk, http_walk.walk], ids=["bus", "http"])
def test_what_belongs_to_another_is_answered_as_what_does_not_exist(running: Scene, walk):
    tried = list(walk(running))

    assert [each for each in tried if not each.same or each.leaked] == []
    assert len(tried) > 50
