"""Run plans: which batch a step trains on never changes, and settings that would change it are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loractl.bus.errors import InvalidRequest
from loractl.client.run_plan import GivenSettings, RunSettings, differences, epoch_order, plan_run


@given(count=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 5))
def test_every_epoch_visits_every_row_once(count, batch_size, seed):
    plan = plan_run(RunSettings(batch_size=batch_size, seed=seed, epochs=3), count)

    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        assert sorted(i for step in steps for i in plan.batch(step)) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    assert epoch_order(20, 0, 0) != epoch_order(20, 0, 1)
    assert epoch_order(20, 0, 0) != epoch_order(20, 1, 0)


def test_the_order_is_the_same_for_ever():
    assert epoch_order(6, 0, 0) == (4, 2, 0, 5, 1, 3)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "total"),
    [(None, None, 3), (2, None, 6), (None, 2, 2), (None, 50, 50), (2, 50, 6), (2, 4, 4)],
)
def test_a_run_ends_at_whichever_bound_comes_first(epochs, max_steps, total):
    settings = RunSettings(batch_size=4, epochs=epochs, max_steps=max_steps)

    assert plan_run(settings, 10).total_steps == total


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"batch_size": 0}, "--batch-size"),
        ({"max_steps": 0}, "--max-steps"),
        ({"learning_rate": -1.0}, "--lr"),
    ],
)
def test_a_setting_out_of_range_is_named_as_its_option(setting, named):
    with pytest.raises(InvalidRequest, match=named):
        plan_run(RunSettings(**setting), 10)


def test_settings_not_given_come_from_the_earlier_run():
    earlier = RunSettings(rank=4, learning_rate=1e-3, epochs=5)

    wanted = GivenSettings(learning_rate=1e-2).over(earlier)

    assert wanted == RunSettings(rank=4, learning_rate=1e-2, epochs=5)


def test_a_new_length_replaces_the_old_one():
    assert GivenSettings(max_steps=9).over(RunSettings(epochs=5)) == RunSettings(max_steps=9)


def test_only_settings_that_change_the_steps_are_differences():
    recorded = RunSettings(rank=16, learning_rate=1e-3, max_steps=5)

    assert differences(recorded, RunSettings(rank=16, learning_rate=1.0, epochs=9)) == []
    assert differences(recorded, RunSettings(rank=8, train_mlp=False)) == [
        "--rank 8 (so far: 16)",
        "--train-mlp off (so far: on)",
    ]
