"""One theatre for all tests here: its trainers serve schedule after schedule."""

from collections.abc import Iterator

import pytest
from loractl.tests.trainer_actor.schedules.theatre import Theatre, theatre


@pytest.fixture(scope="session")
def stages() -> Iterator[Theatre]:
    with theatre(layers=1) as opened:
        yield opened
