"""One service for every test here that does not need one of its own."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from loractl.tests.tinker_bridge.raw import Raw
from loractl.tests.tinker_bridge.served import Served, serving


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    # Who is killed by a test comes back at once, however many were before.
    restarts = ["daemon.restart_first_s=0.05", "daemon.restart_max_s=0.1", "daemon.restart_limit=100"]
    with serving(*restarts) as running:
        yield running


@pytest.fixture(scope="session")
def sdk_environment(served: Served) -> Iterator[None]:
    """The SDK in this process finds the service and the tokenizer."""
    before = dict(os.environ)
    os.environ.update(served.environment())
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def service(sdk_environment: None) -> Iterator[Any]:
    """A session of the SDK's; with its end, what its tests made is freed."""
    import tinker

    with tinker.ServiceClient() as client:
        yield client


@pytest.fixture(scope="module")
def raw(served: Served) -> Iterator[Raw]:
    with Raw(served) as requests:
        yield requests
