"""Which operations of a history made an adapter what it is."""

from dataclasses import replace

import numpy as np
import pytest
from loractl.bus.errors import InvalidRequest
from loractl.bus.ids import LaneId
from loractl.bus.messages import HistoryEntry, PassResult, StateLoaded, StepResult
from loractl.client.history import Difference, changes, difference, without_load


def entries(*operations: str) -> list[HistoryEntry]:
    """Each by its kind; a step counts up; with "failed " before it, it failed."""
    found, step = [], 0
    for number, operation in enumerate(operations, start=1):
        kind = operation.removeprefix("failed ")
        failed = kind != operation
        step += kind == "optim_step" and not failed
        found.append(
            HistoryEntry(
                number=number,
                order=number,
                operation=kind,
                lane=LaneId("ln-1"),
                seq=number,
                state="failed" if failed else "done",
                came_unix_s=0.0,
                size_bytes=1,
                step=step if kind == "optim_step" else -1,
                details="",
            )
        )
    return found


def numbers(*operations: str, at_step: int | None = None) -> list[int]:
    return [each.number for each in changes(entries(*operations), at_step=at_step)]


def test_what_failed_or_only_looked_changed_nothing():
    assert numbers("forward_backward", "failed forward_backward", "save_checkpoint", "optim_step") == [1, 4]


def test_all_before_the_last_load_is_of_no_matter():
    assert numbers("forward_backward", "optim_step", "load_checkpoint", "forward_backward") == [3, 4]


def test_gradients_that_an_unload_took_with_it_do_not_count():
    unloaded = ("forward_backward", "optim_step", "forward_backward", "unload_adapter")

    assert numbers(*unloaded) == [1, 2]
    assert numbers(*unloaded, "forward_backward", "optim_step") == [1, 2, 5, 6]
    assert numbers("forward_backward", "failed unload_adapter", "optim_step") == [1, 3]


def test_a_step_that_never_was_is_named_with_those_that_were():
    assert numbers("forward_backward", "optim_step", "forward_backward", "optim_step", at_step=1) == [1, 2]
    with pytest.raises(InvalidRequest, match="no step 7 of this adapter; it has 1 to 1"):
        numbers("forward_backward", "optim_step", at_step=7)
    with pytest.raises(InvalidRequest, match="no step 2 of this adapter; it has none yet"):
        numbers("forward_backward", at_step=2)


def test_a_step_that_retention_took_is_told_with_the_settings():
    made = entries("forward_backward", "optim_step", "forward_backward", "optim_step")

    for left in ([], made[2:]):
        with pytest.raises(
            InvalidRequest, match=r"no longer has step 1 .*journal\.keep_s and .*journal\.keep_bytes"
        ):
            changes(left, at_step=1, whole=False)
    with pytest.raises(InvalidRequest, match="no step 9 of this adapter; it has 2 to 2"):
        changes(made[2:], at_step=9, whole=False)


def test_without_a_load_all_that_it_undid_is_gone_and_the_rest_counts():
    made = entries(
        *("forward_backward", "optim_step", "save_checkpoint"),
        *("forward_backward", "optim_step", "load_checkpoint", "forward_backward"),
    )
    assert [each.number for each in changes(made, at_step=None)] == [6, 7]

    left = without_load(made, load=made[5], save=made[2])

    assert [each.number for each in changes(left, at_step=None)] == [1, 2, 7]


def test_what_ended_while_a_save_was_written_came_behind_it():
    made = entries("forward_backward", "optim_step", "forward_backward", "save_checkpoint", "load_checkpoint")
    save = replace(made[3], seq=3)
    made[2:4] = [replace(made[2], seq=4), save]

    left = without_load(made, load=made[4], save=save)

    assert [each.number for each in changes(left, at_step=None)] == [1, 2]


def test_a_difference_says_by_how_much_where_it_is_one_of_numbers():
    entry = entries("forward_backward")[0]
    step = StepResult(applied=True, step=1, grad_norm=2.0, learning_rate=0.1, tokens=3)

    assert difference(entry, step, step) is None
    assert difference(entry, step, replace(step, grad_norm=2.5)) == Difference(entry, "grad_norm", by=0.5)
    assert difference(entry, step, replace(step, step=2)) == Difference(entry, "step")
    assert difference(entry, step, StateLoaded(step=1)) == Difference(entry, "kind of answer")


def test_a_difference_of_arrays_is_the_largest_and_none_where_their_sizes_differ():
    entry = entries("forward_backward")[0]
    logprobs = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    passed = PassResult(logprobs=logprobs, loss_terms=logprobs, metrics={})

    def with_logprobs(*values: float) -> PassResult:
        return replace(passed, logprobs=np.array(values, dtype=np.float32))

    found = difference(entry, passed, with_logprobs(1.0, 2.25, 2.5))
    assert found == Difference(entry, "logprobs", by=0.5)
    assert difference(entry, passed, with_logprobs(1.0)) == Difference(entry, "logprobs")
