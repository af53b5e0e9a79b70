"""What all tests share: how they are collected, and in which order. What they need lies in their own folders."""

import gc
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Files that take half a minute and more come first: at the end there is something short for every process.
LONG = (
    "crash/test_crash.py",
    "tinker_bridge/test_durable_futures.py",
    "trainer_actor/schedules/test_schedules.py",
    "crash/test_real_crash_points.py",
    "tinker_bridge/test_cookbook.py",
    "daemon/test_recovery_live.py",
    "cli/test_restarts.py",
    "cli/test_session.py",
    "sampler_actor/test_actor_vllm.py",
    "fuzz/test_fuzz.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported for the tests stays: nobody looks for garbage in it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / file: place for place, file in enumerate(LONG)}
    assert all(file.exists() for file in places)
    items.sort(key=lambda item: places.get(item.path, len(LONG)))
