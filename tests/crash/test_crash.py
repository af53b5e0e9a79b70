"""Any process may be killed at any moment, and nobody who uses the SDK notices more than a pause."""

import pytest
from loractl.tests.crash.driver import Plan, crash

pytest.importorskip("tinker", reason="the tenants use the SDK")


@pytest.mark.timeout(900)
def test_nothing_acknowledged_is_lost_and_nothing_runs_twice_through_twenty_kills(quiet_sdk):
    # `make crash` has more of them, and another seed every time.
    report = crash(Plan(kills=20, seed=5, soon=0.7))

    assert report.good, report.words()
    assert report.kills == 20
    assert report.acknowledged > 50
