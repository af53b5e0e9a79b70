"""Two threads, several tenants in each pass: what is brought back after kill -9 of the trainer runs again in
passes of the same shapes, to the same bits, and is proved alone."""

import pytest
from loractl.tests.daemon.neighbours import SETTINGS, SIZES, come_back_to_the_same_bits
from loractl.tests.daemon.trained_daemon import trained_daemon


@pytest.mark.timeout(900)
def test_neighbours_are_brought_back_to_the_same_bits_on_two_threads() -> None:
    with trained_daemon(*SETTINGS, "trainer.threads=2", **SIZES) as config:
        come_back_to_the_same_bits(config)
