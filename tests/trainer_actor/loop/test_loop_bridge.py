"""What a server for many clients asks of the trainer: refusals in order, versions and exports, unloading."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from loractl.bus.errors import LoractlError
from loractl.bus.ids import LOCAL_TENANT, TenantId
from loractl.bus.messages import (
    AdapterDetails,
    AdapterList,
    CheckpointSaved,
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    DigestState,
    Done,
    DropVersion,
    ExportWeights,
    Failed,
    ImportWeights,
    ListAdapters,
    LoadCheckpoint,
    LoadVersion,
    LoraSpec,
    OpenLane,
    OptimStep,
    PassResult,
    PublishAdapter,
    RefuseOperation,
    SaveCheckpoint,
    SnapshotTaken,
    StateDigest,
    StateLoaded,
    StepResult,
    UnloadAdapter,
    VersionRecord,
    VersionWritten,
    WeightsExported,
)
from loractl.tests.trainer_actor.loop.harness import (
    Adapter,
    Office,
    checked,
    create,
    pass_over,
    same,
    start,
    stop,
)
from loractl.tests.trainer_actor.loop.test_loop_ends import HeldEngine

Serve = Callable[..., Office]
STRANGER = TenantId("stranger")


@pytest.fixture
def office(serve: Serve) -> Office:
    return serve()


def train(adapter: Adapter, *windows: int) -> None:
    for data in windows:
        adapter.forward_backward(data)
        adapter.step(rate=0.05, weight_decay=0.1)


def now(adapter: Adapter) -> list[np.ndarray]:
    """What the adapter says, without a trace."""
    adapter.forward_backward(999, forward_only=True)
    return [adapter.results.pop()]


def save(adapter: Adapter, name: str) -> CheckpointSaved:
    return adapter.run(SaveCheckpoint, CheckpointSaved, name=name)


def publish(adapter: Adapter, *, held: bool = False) -> VersionRecord:
    return adapter.run(PublishAdapter, VersionWritten, held=held).record


def details(adapter: Adapter) -> AdapterDetails:
    listed = adapter.office.ask(ListAdapters(name=adapter.details.name), AdapterList, adapter.tenant)
    return listed.adapters[0]


def unload(adapter: Adapter) -> None:
    adapter.office.ask(UnloadAdapter(adapter=adapter.id), Done, adapter.tenant)


# --- refusals ----------------------------------------------------------------------------------------


def test_a_refusal_waits_for_its_number_and_what_is_behind_it_runs(office: Office) -> None:
    adapter = create(office, "poet")
    first, bad, step = adapter.next(), adapter.next(), adapter.next()
    refusal = RefuseOperation(code="invalid_data", message="datum 3 has no tokens", **bad)  # type: ignore[arg-type]
    requests = [
        office.send(OptimStep(learning_rate=0.1, **step)),  # type: ignore[arg-type]
        office.send(refusal),
        office.send(pass_over(1, **first)),
    ]

    stepped, refused, passed = (office.wait(request) for request in requests)

    assert refused == Failed(
        code="invalid_data", message="datum 3 has no tokens", retryable=False, fault="user"
    )
    assert isinstance(passed, PassResult)
    assert checked(stepped, StepResult).applied
    assert office.arrived[-3:] == [requests[2], requests[1], requests[0]]


def test_a_refusal_sent_again_reads_the_same_and_leaves_no_trace(office: Office) -> None:
    plain, refused = create(office, "plain"), create(office, "refused")

    for adapter in (plain, refused):
        adapter.forward_backward(1)
        if adapter is refused:
            refusal = RefuseOperation(code="not_supported", message="no images", **adapter.next())  # type: ignore[arg-type]
            answers = [office.wait(office.send(refusal)) for _ in range(2)]
            assert answers[0] == answers[1]
            other = replace(refusal, message="no sounds")
            assert office.refused(other).code == "sequence_conflict"
        adapter.step()
        adapter.forward_backward(2)

    assert same(plain.results, refused.results)


# --- versions as a beginning -------------------------------------------------------------------------


def test_a_loaded_version_says_what_it_said_and_its_optimizer_starts_anew(office: Office) -> None:
    poet, heir = create(office, "poet"), create(office, "heir", seed=77)
    train(poet, 1, 2)
    version = publish(poet, held=True)
    expected = now(poet)
    train(poet, 3)
    heir.forward_backward(5)

    loaded = heir.run(LoadVersion, StateLoaded, source=poet.id, version=version.number)

    assert loaded.step == 0
    assert same(now(heir), expected)
    assert not heir.step().applied, "what was gathered before is dropped"
    train(heir, 4)
    assert details(heir).step == 1


def test_a_loaded_version_is_what_an_import_of_its_files_is(office: Office) -> None:
    poet, loaded, imported = (create(office, name) for name in ("poet", "loaded", "imported"))
    train(poet, 1)
    directory = Path(publish(poet).directory)
    data = np.frombuffer((directory / "adapter_model.safetensors").read_bytes(), np.uint8)

    loaded.run(LoadVersion, StateLoaded, source=poet.id, version=1)
    config_json = (directory / "adapter_config.json").read_text()
    imported.run(ImportWeights, StateLoaded, config_json=config_json, safetensors=data)

    for adapter in (loaded, imported):
        train(adapter, 2, 3)
        adapter.results = now(adapter)
    assert same(loaded.results, imported.results)


def test_what_cannot_be_loaded_is_said_and_does_no_harm(office: Office) -> None:
    poet, other = create(office, "poet"), create(office, "other", rank=2)
    train(poet, 1)
    version = publish(poet)
    train(other, 7)
    before = now(other)

    missing = other.refused(LoadVersion, source=poet.id, version=9)
    unfit = other.refused(LoadVersion, source=poet.id, version=1)
    (Path(version.directory) / "adapter_model.safetensors").write_bytes(b"torn")
    damaged = poet.refused(LoadVersion, source=poet.id, version=1)
    office.tell(DropVersion(adapter=poet.id, version=1))
    dropped = poet.refused(LoadVersion, source=poet.id, version=1)

    codes = [error.code for error in (missing, unfit, damaged, dropped)]
    assert codes == ["version_not_found", "checkpoint_mismatch", "checkpoint_mismatch", "version_not_found"]
    assert "r is 4" in unfit.message
    assert "damaged" in damaged.message
    assert same(now(other), before)


@pytest.mark.parametrize("what", [partial(LoadCheckpoint, name="one"), partial(LoadVersion, version=1)])
def test_a_source_is_of_ones_own_unless_its_owner_is_named(
    office: Office, what: Callable[..., LoadCheckpoint | LoadVersion]
) -> None:
    poet, heir = create(office, "poet"), create(office, "heir", tenant=STRANGER)
    mine = create(office, "mine", tenant=STRANGER)
    train(poet, 1)
    save(poet, "one")
    publish(poet)
    expected = now(poet)

    unnamed = heir.refused(what, source=poet.id)
    wrong = heir.refused(what, source=poet.id, source_owner=STRANGER)
    not_theirs = heir.refused(what, source=mine.id, source_owner=LOCAL_TENANT)
    answer = office.ask(what(source=poet.id, source_owner=LOCAL_TENANT, **heir.next()), StateLoaded, STRANGER)

    assert [error.code for error in (unnamed, wrong, not_theirs)] == ["adapter_not_found"] * 3
    assert answer.step == (1 if isinstance(what(source=poet.id, **heir.next()), LoadCheckpoint) else 0)
    heir.seq -= 1
    assert same(now(heir), expected)


# --- exports ------------------------------------------------------------------------------------------


def test_an_export_is_what_a_publish_writes_and_publishes_nothing(office: Office) -> None:
    poet = create(office, "poet")
    train(poet, 1)
    poet.forward_backward(2)

    exported = poet.run(ExportWeights, WeightsExported)
    listed = details(poet)
    version = publish(poet)

    assert exported.step == 1
    assert listed.version == 0
    assert version.number == 1
    directory = Path(version.directory)
    assert exported.config_json == (directory / "adapter_config.json").read_text()
    assert exported.safetensors.tobytes() == (directory / "adapter_model.safetensors").read_bytes()
    assert json.loads(exported.config_json)["r"] == 4
    assert poet.step().applied, "the window is still open"


def test_the_digest_of_a_state_tells_each_part_and_is_that_of_whoever_did_the_same(office: Office) -> None:
    poet, twin = create(office, "poet"), create(office, "twin")
    before = poet.run(DigestState, StateDigest)
    for each in (poet, twin):
        train(each, 1)
        each.forward_backward(2)

    open_window = poet.run(DigestState, StateDigest)

    assert (before.step, set(before.pieces)) == (0, {"main"})
    assert (open_window.step, open_window.tokens > 0) == (1, True)
    assert set(open_window.pieces) == {"main", "gradients", "exp_avg", "exp_avg_sq"}
    assert open_window == twin.run(DigestState, StateDigest)
    twin.forward_backward(3)
    differs = twin.run(DigestState, StateDigest)
    assert {piece for piece in differs.pieces if differs.pieces[piece] != open_window.pieces[piece]} == {
        "gradients"
    }


def test_an_export_larger_than_a_message_is_refused(serve: Serve) -> None:
    poet = create(serve("limits.frame_bytes=18000", "limits.header_bytes=18000"), "poet")

    error = poet.refused(ExportWeights)

    assert (error.code, error.fault) == ("invalid_request", "user")
    assert "limits.frame_bytes" in error.message
    train(poet, 1)


# --- held versions ------------------------------------------------------------------------------------


def test_a_restarted_trainer_brings_held_versions_as_held(open_office: Serve) -> None:
    office = open_office()
    trainer, _ = start(office)
    poet = create(office, "poet")
    for held in (True, False):
        assert publish(poet, held=held).held is held
    stop(office, trainer)

    trainer, ready = start(office)

    assert {record.number: record.held for record in ready.versions} == {1: True, 2: False}
    stop(office, trainer)


# --- unloading ----------------------------------------------------------------------------------------


def test_an_adapter_that_was_unloaded_goes_on_as_if_it_had_not_been(office: Office) -> None:
    stays, leaves = create(office, "stays"), create(office, "leaves")

    for adapter in (stays, leaves):
        train(adapter, 1, 2)
        save(adapter, "two")
        if adapter is leaves:
            unload(adapter)
            assert details(adapter).step == 2
            adapter.reopen()
        train(adapter, 3, 4)
        adapter.results = now(adapter)

    assert same(stays.results, leaves.results)
    assert details(leaves).step == details(stays).step == 4


def test_unloading_loses_no_step_and_ends_an_open_window(office: Office) -> None:
    poet = create(office, "poet")
    train(poet, 1)
    save(poet, "one")
    train(poet, 2)
    expected = now(poet)
    poet.forward_backward(3)

    unload(poet)
    taken = office.wait_for_report(SnapshotTaken)
    poet.reopen()

    assert (taken.adapter, taken.step, taken.lanes) == (poet.id, 2, ())
    assert (poet.details.step, poet.details.checkpoint_step, poet.details.open_window) == (2, 1, False)
    assert same(now(poet), expected)
    assert not poet.step().applied, "what was gathered is gone"
    office.ask(DeleteCheckpoint(adapter=poet.id, name="one"), Done)
    unload(poet)
    poet.reopen()
    assert same(now(poet), expected)
    assert (poet.details.step, poet.details.checkpoint_step) == (2, -1)


def test_an_adapter_that_is_asked_for_while_it_leaves_comes_back(office: Office) -> None:
    poet = create(office, "poet")
    train(poet, 1)
    expected = now(poet)

    leaving = [office.send(UnloadAdapter(adapter=poet.id)) for _ in range(2)]
    poet.reopen()

    assert all(isinstance(office.wait(request), Done) for request in leaving)
    assert same(now(poet), expected)


def test_an_adapter_that_is_deleted_while_it_leaves_is_gone(office: Office) -> None:
    poet = create(office, "poet")
    train(poet, 1)

    leaving = office.send(UnloadAdapter(adapter=poet.id))
    office.ask(DeleteAdapter(adapter=poet.id), Done)

    assert isinstance(office.wait(leaving), Done)
    assert not office.layout.adapter(poet.id).exists()


def test_an_adapter_that_cannot_be_snapshotted_stays_and_goes_on(office: Office) -> None:
    poet = create(office, "poet")
    poet.forward_backward(1)
    snapshots = office.layout.snapshots(poet.id)
    snapshots.write_text("a file where the directory should be")

    refused = office.refused(UnloadAdapter(adapter=poet.id))

    assert refused.code == "storage_failed"
    assert poet.step().tokens == 12
    snapshots.unlink()
    unload(poet)
    assert poet.refused(OptimStep, learning_rate=0.1).code == "lane_lost"
    assert details(poet).step == 1


def test_unloading_answers_what_waits_and_closes_the_lanes(office: Office) -> None:
    poet = create(office, "poet")
    poet.next()
    early = office.send(pass_over(1, **poet.next()))

    unload(poet)
    unload(poet)

    waited = office.wait(early)
    assert isinstance(waited, Failed)
    assert (waited.code, "unloaded" in waited.message) == ("aborted", True)
    assert poet.refused(OptimStep, learning_rate=0.1).code == "lane_lost"
    poet.reopen()
    train(poet, 1)


def test_unloading_makes_room_for_another_adapter(serve: Serve) -> None:
    office = serve("trainer.slots=1", f"trainer.host_bytes={2 * 131072}", "trainer.disk_bytes=0")
    first, second = create(office, "first"), create(office, "second")
    train(first, 1)
    train(second, 1)
    save(first, "one")
    expected = now(first)
    one_more = CreateAdapter(name="third", lora=LoraSpec(rank=4, alpha=8.0, seed=1))
    assert office.refused(one_more).code == "out_of_slots"

    unload(first)
    third = create(office, "third")
    train(third, 1)

    assert office.refused(OpenLane(adapter=first.id)).code == "out_of_slots"
    unload(third)
    first.reopen()
    assert same(now(first), expected)


def test_checkpoints_versions_and_their_numbers_outlive_unloading(office: Office) -> None:
    poet, heir = create(office, "poet"), create(office, "heir")
    train(poet, 1)
    save(poet, "one")
    publish(poet)
    expected = now(poet)

    unload(poet)

    heir.run(LoadCheckpoint, StateLoaded, source=poet.id, name="one")
    assert same(now(heir), expected)
    heir.run(LoadVersion, StateLoaded, source=poet.id, version=1)
    assert same(now(heir), expected)
    poet.reopen()
    assert publish(poet).number == 2


def test_an_unloaded_adapter_is_where_it_was_after_a_stop(open_office: Serve) -> None:
    office = open_office()
    trainer, _ = start(office)
    poet = create(office, "poet")
    train(poet, 1)
    save(poet, "one")
    train(poet, 2)
    expected = now(poet)
    unload(poet)
    stop(office, trainer)

    trainer, _ = start(office)

    assert details(poet).step == 2
    poet.reopen()
    assert same(now(poet), expected)
    stop(office, trainer)


# --- checkpoints that are deleted ---------------------------------------------------------------------


def delete(adapter: Adapter, name: str, tenant: TenantId = LOCAL_TENANT) -> LoractlError | None:
    answer = adapter.office.wait(adapter.office.send(DeleteCheckpoint(adapter=adapter.id, name=name), tenant))
    try:
        checked(answer, Done)
    except LoractlError as error:
        return error
    return None


@pytest.mark.parametrize("loaded", [True, False])
def test_the_newest_checkpoint_that_is_left_counts(office: Office, loaded: bool) -> None:
    poet = create(office, "poet")
    for step, name in enumerate(("one", "two"), start=1):
        train(poet, step)
        save(poet, name)
    expected = now(poet)
    if not loaded:
        unload(poet)

    assert delete(poet, "two") is None

    assert details(poet).checkpoint_step == 1
    assert details(poet).step == 2
    gone = delete(poet, "two")
    assert gone is not None
    assert gone.code == "checkpoint_not_found"
    if not loaded:
        poet.reopen()
    assert same(now(poet), expected)
    assert delete(poet, "one") is None
    assert details(poet).checkpoint_step == -1


def test_what_only_a_deleted_checkpoint_held_is_there_after_a_stop(open_office: Serve) -> None:
    office = open_office()
    trainer, _ = start(office)
    poet = create(office, "poet")
    train(poet, 1)
    save(poet, "one")
    expected = now(poet)
    delete(poet, "one")
    stop(office, trainer)

    trainer, _ = start(office)
    poet.reopen()

    assert poet.details.step == 1
    assert same(now(poet), expected)
    stop(office, trainer)


def test_only_their_owner_unloads_adapters_and_deletes_checkpoints(office: Office) -> None:
    poet = create(office, "poet")
    save(poet, "one")

    theirs = delete(poet, "one", STRANGER)
    unloaded = office.refused(UnloadAdapter(adapter=poet.id), STRANGER)

    assert theirs is not None
    assert theirs.code == unloaded.code == "adapter_not_found"
    assert delete(poet, "(automatic)") is not None
    train(poet, 1)


# --- what they wait for -------------------------------------------------------------------------------


def test_who_waits_is_told_what_for(open_office: Serve) -> None:
    HeldEngine.entered.clear()
    HeldEngine.released.clear()
    office = open_office("trainer.pass_tokens=12")
    trainer, _ = start(office, HeldEngine)
    poet, other = create(office, "poet"), create(office, "other")
    # So many that the last of them still waits whenever the poet's operation comes in.
    others = [office.send(pass_over(1, **other.next())) for _ in range(30)]
    assert HeldEngine.entered.wait(60.0)
    first = office.send(pass_over(1, **poet.next()))
    HeldEngine.released.set()
    poet.next()

    late = office.send(pass_over(3, **poet.next()))

    assert office.wait_for_notice(late) == "operation 2 of this adapter has not arrived yet"
    answers = [office.wait(request) for request in (*others, first)]
    assert all(isinstance(answer, PassResult) for answer in answers)
    assert office.notices[first] == ["takes turns with another adapter"]
    stop(office, trainer)
