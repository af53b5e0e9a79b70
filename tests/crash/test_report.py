"""The last line of a crash test: short when all is well, and never better than what was looked at."""

import pytest
from loractl.tests.crash.report import Report


def test_with_nothing_amiss_it_is_what_scripts_look_for():
    report = Report(seed=1, kills=20, acknowledged=99, tenants=8, asked=True, compared=8)

    assert report.good
    assert report.last_line == "kills 20, acknowledged 99, lost 0, doubled 0, differing 0"


@pytest.mark.parametrize(
    ("chaos", "again"), [(0, "make crash KILLS=3 SEED=1"), (7, "make crash KILLS=3 SEED=1 CHAOS=7")]
)
def test_after_a_failure_it_says_how_to_play_all_of_it_again(chaos: int, again: str):
    report = Report(seed=1, chaos=chaos, kills=3, failures=["one"])

    assert f"again with: {again}" in report.words().splitlines()


def test_after_a_failure_it_ends_with_how_many_and_says_what_was_not_looked_at():
    report = Report(
        seed=1, kills=3, acknowledged=9, tenants=8, asked=True, compared=6, failures=["one", "two"]
    )

    assert not report.good
    assert report.last_line == (
        "kills 3, acknowledged 9, lost 0, doubled 0, differing 0, 2 of 8 tenants not compared, failed 2"
    )
    report.asked = False
    assert "not all asked again" in report.last_line
