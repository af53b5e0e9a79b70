import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_sdk() -> Iterator[None]:
    """The SDK says of every broken connection that it tries again."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
