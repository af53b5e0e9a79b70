"""Which operations of a history made an adapter what it is."""

from dataclasses import replace

import numpy as np
import pytest
from loractl.bus.errors import InvalidRequest
from loractl.bus.ids import LaneId
from loractl.bus.messages import HistoryEntry, PassResult, StateDigest, StateLoaded, StepResult
from loractl.client.history import Difference, changes, difference, done_of, without_load
from loractl.client.history_work import by_text
from loractl.client.verify_work import differing_parts, verdict


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


def test_an_unload_stays_where_it_took_what_a_load_had_brought():
    loaded = ("optim_step", "load_checkpoint", "forward_backward", "unload_adapter", "optim_step")

    assert numbers(*loaded) == [2, 4, 5]
    assert numbers(*loaded, "unload_adapter") == [2, 4, 5]
    assert numbers(*loaded[:4], "unload_adapter", "optim_step") == [2, 4, 6]
    assert numbers("load_version", "unload_adapter", "optim_step") == [1, 3], "it brings no gradients"


def test_a_fork_at_the_step_of_a_load_is_what_the_unload_left():
    made = entries("load_checkpoint", "unload_adapter", "forward_backward", "optim_step")
    made[0] = replace(made[0], step=5)

    assert [each.number for each in changes(made, at_step=5)] == [1, 2]


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


def test_an_unload_counts_for_what_is_left_without_a_load():
    made = entries(
        *("forward_backward", "save_checkpoint", "optim_step", "unload_adapter", "load_checkpoint"),
        *("unload_adapter", "forward_backward", "optim_step"),
    )

    left = without_load(made, load=made[4], save=made[1])

    assert [each.number for each in changes(left, at_step=None)] == [7, 8], (
        "the gradients went with the second"
    )


def test_a_load_that_came_under_two_ids_is_left_out_once():
    made = entries(
        *("save_checkpoint", "optim_step", "save_checkpoint", "optim_step", "load_checkpoint"),
        *("load_checkpoint", "optim_step"),
    )
    made[5] = replace(made[5], seq=made[4].seq)

    left = without_load(done_of(made), load=made[4], save=made[2])

    assert [each.number for each in changes(left, at_step=None)] == [2, 7]


def test_an_operation_that_came_under_two_ids_ran_once():
    made = entries("forward_backward", "optim_step", "forward_backward")
    again = replace(made[0], number=4, order=4)

    assert [each.number for each in changes([*made, again], at_step=None)] == [1, 2, 3]


def test_every_unload_counts_though_none_has_a_place_on_a_lane():
    made = entries("forward_backward", "unload_adapter", "forward_backward", "unload_adapter")
    made = [
        replace(each, lane=LaneId(""), seq=0) if each.operation == "unload_adapter" else each for each in made
    ]

    assert changes(made, at_step=None) == []


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


def test_what_is_equal_and_no_number_hides_nothing_of_a_difference():
    entry = entries("forward_backward")[0]
    logprobs = np.array([-np.inf, np.nan, 1.0], dtype=np.float32)
    passed = PassResult(logprobs=logprobs, loss_terms=logprobs, metrics={})

    found = difference(
        entry, passed, replace(passed, logprobs=np.array([-np.inf, 0.0, 1.5], dtype=np.float32))
    )

    assert found is not None
    assert found.by is not None
    assert np.isnan(found.by)
    assert by_text([found, replace(found, by=0.5)]) == " (by up to nan)"
    assert by_text([replace(found, by=0.5), replace(found, by=None)]) == " (by up to 0.5)"
    assert by_text([replace(found, by=None)]) == ""


def test_what_differs_is_told_with_how_much_and_with_what_it_ran(capsys):
    made = entries("forward_backward", "optim_step")
    differing = [Difference(made[0], "logprobs", by=0.25), Difference(made[1], "step")]

    assert verdict("pirate", made, differing, ["weights", "first moments"]) == 1

    told = " ".join(capsys.readouterr().err.split())
    assert "forward_backward 1: its logprobs is not what the journal has (by up to 0.25)" in told
    assert "optim_step 2: its step is not what the journal has " in told
    assert (
        "NOT to the bit what it would be alone: 2 of 2 answers differ (by up to 0.25), its weights, first moments differ"
        in told
    )
    assert "trainer.tensor_parallel" in told


def test_states_differ_by_the_parts_of_which_one_has_other_bits_or_none():
    state = StateDigest(step=3, tokens=0, pieces={"main": "a", "exp_avg": "b", "exp_avg_sq": "c"})

    assert differing_parts(state, state) == []
    assert differing_parts(state, replace(state, pieces={**state.pieces, "gradients": "d"})) == ["gradients"]
    assert differing_parts(state, replace(state, pieces={**state.pieces, "exp_avg": "x"})) == [
        "first moments"
    ]
    assert differing_parts(state, replace(state, tokens=4)) == ["counters"]


def test_saves_come_again_also_of_what_an_unload_took():
    made = entries(
        *("save_checkpoint", "forward_backward", "optim_step", "save_checkpoint"),
        *("forward_backward", "save_checkpoint", "forward_backward", "unload_adapter"),
        *("unload_adapter", "forward_backward"),
    )

    again = changes(made, at_step=None, with_saves=True)
    assert [each.number for each in again] == [1, 2, 3, 4, 5, 6, 8, 10]
    assert [each.number for each in changes(made, at_step=None)] == [2, 3, 10]
