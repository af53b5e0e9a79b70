"""What the load scenarios make of what they measured."""

import sys
from math import inf, isnan
from pathlib import Path

import numpy as np
import pytest
from loractl.tinker_bridge.wire import decode_forward_backward

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from loading.bodies import BODY_BYTES, body_of
from loading.heartbeats import Beat, Beats, quickness
from loading.service import Sizes
from loading.soak import growth_of

MIB = 2**20


def sizes(*bridge_mib: float) -> list[Sizes]:
    return [Sizes(10.0 * at, {"bridge": int(each * MIB)}, 7 * MIB) for at, each in enumerate(bridge_mib)]


def test_only_the_heartbeats_of_a_phase_count():
    beats = Beats(service=[Beat(float(at), 0.001 * at) for at in range(100)])

    found = quickness(beats, since_s=10, until_s=20)

    assert (found.count, found.failed, found.worst) == (10, 0, 19)
    assert isnan(found.machine_p99)


def test_a_heartbeat_that_was_never_answered_is_the_slowest_of_all():
    found = quickness(Beats(service=[Beat(0, 0.001)] * 98 + [Beat(1, inf)] * 2))

    assert (found.failed, found.p50, found.p99) == (2, 1, inf)


def test_memory_that_rises_while_a_process_warms_up_is_flat():
    growth = growth_of(sizes(10, 40, 80, 90, 99, 100, 101, 99, 100, 100))

    assert growth["bridge"].flat
    assert growth["state directory"].bytes_per_hour == pytest.approx(0, abs=1)


def test_memory_that_rises_all_the_time_is_not_flat():
    growth = growth_of(sizes(*range(100, 120)))

    assert not growth["bridge"].flat
    assert growth["bridge"].bytes_per_hour == pytest.approx(360 * MIB)


def test_a_body_is_as_large_as_said_and_is_what_the_service_reads():
    body = body_of("session:train:0", 3, np.random.default_rng(0))

    call = decode_forward_backward(body, "application/x-protobuf")

    assert len(body) == pytest.approx(BODY_BYTES, rel=0.01)
    assert (call.model_id, call.seq_id, call.loss) == ("session:train:0", 3, "cross_entropy")
    assert call.inputs.targets.shape == call.inputs.weights.shape
