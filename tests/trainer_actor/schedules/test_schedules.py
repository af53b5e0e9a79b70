"""A thousand crowds: whatever its neighbours do, an adapter is bit for bit what it is alone.

Weights, moments, gradients and counters are compared through checkpoints, outputs through answers.
`make schedules` plays ten thousand others.
"""

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from loractl.bus.messages import Usage
from loractl.tests.trainer_actor.schedules.schedule import Schedule, draw_schedule
from loractl.tests.trainer_actor.schedules.theatre import Theatre, pool, shared_part
from loractl.tests.trainer_actor.schedules.trainers import VARIANTS

# `make schedules` plays ten thousand.
EACH = 320 // len(VARIANTS)
# Of all passes. Crowds end one adapter after the other, and small passes have little room for company.
LEAST_SHARED = {
    "shared, fused": 0.3,
    "shared, fused, few bytes": 0.3,
    "shared, fused, recomputed": 0.3,
    "shared, fused, in pieces": 0.08,
}


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    return draw_schedule(lambda below: draw(st.integers(0, below - 1)), pool(0))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_adapter_of_a_crowd_ends_as_it_does_alone(stages: Theatre, variant: str) -> None:
    usage: list[Usage] = []
    played: list[Schedule] = []

    # Seeded, and without a database: the same schedules every time.
    @seed(sorted(VARIANTS).index(variant))
    @settings(
        max_examples=EACH,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules())
    def plays(schedule: Schedule) -> None:
        outcome = stages.play(variant, schedule)
        usage.extend(outcome.usage)
        played.append(schedule)
        assert not outcome.differences

    plays()

    assert len(played) >= EACH
    if variant in LEAST_SHARED:
        assert shared_part(usage) >= LEAST_SHARED[variant]
    else:
        assert shared_part(usage) == 0
