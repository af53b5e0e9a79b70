"""A line now and then of what happens all the time."""

from loractl.daemon.now_and_then import NowAndThen


def test_the_first_is_told_at_once_and_the_next_with_all_in_between():
    refused = NowAndThen()

    assert refused.happened(0.0) == 1
    assert [refused.happened(9.9) for _ in range(1000)] == [0] * 1000
    assert refused.happened(10.0) == 1001
    assert refused.happened(10.1) == 0
    assert refused.happened(20.0) == 2
