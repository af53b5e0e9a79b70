"""What outlives a trainer: checkpoints, published versions, numbers, names."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from loractl.bus.messages import (
    ActorReady,
    CheckpointSaved,
    DeleteAdapter,
    Done,
    DropVersion,
    ImportWeights,
    ListAdapters,
    LoadCheckpoint,
    OptimStep,
    PublishAdapter,
    SaveCheckpoint,
    StateLoaded,
    VersionRecord,
    VersionWritten,
)
from loractl.tests.trainer_actor.loop.harness import (
    Adapter,
    Office,
    create,
    said_file,
    same,
    start,
    start_process,
    stop,
)
from peft import PeftModel
from transformers import AutoModelForCausalLM

Serve = Callable[..., Office]
OpenOffice = Callable[..., Office]


def window(adapter: Adapter, data: int) -> None:
    adapter.forward_backward(data)
    adapter.step(rate=0.05, weight_decay=0.1)


def save(adapter: Adapter, name: str, *, overwrite: bool = False) -> CheckpointSaved:
    return adapter.run(SaveCheckpoint, CheckpointSaved, name=name, overwrite=overwrite)


def load(adapter: Adapter, source: Adapter, name: str, *, with_optimizer: bool = True) -> StateLoaded:
    return adapter.run(
        LoadCheckpoint, StateLoaded, source=source.id, name=name, with_optimizer=with_optimizer
    )


def publish(adapter: Adapter) -> VersionRecord:
    return adapter.run(PublishAdapter, VersionWritten).record


def last(adapter: Adapter) -> list[np.ndarray]:
    """What the adapter says now, without a trace."""
    adapter.forward_backward(999, forward_only=True)
    return [adapter.results.pop()]


# --- checkpoints -----------------------------------------------------------------------------------


def test_a_run_continued_from_a_checkpoint_is_the_run_that_was_never_interrupted(serve: Serve) -> None:
    office = serve()
    whole = create(office, "whole")
    window(whole, 1)
    save(whole, "one")
    window(whole, 2)
    expected = last(whole)

    heir = create(office, "heir", seed=77)
    loaded = load(heir, whole, "one")
    window(heir, 2)

    assert loaded.step == 1
    assert same(last(heir), expected)
    assert heir.step().step == 2


def test_without_the_optimizer_moments_and_step_start_anew(serve: Serve) -> None:
    office = serve()
    first = create(office, "first")
    window(first, 1)
    save(first, "one")
    kept, bare = create(office, "kept"), create(office, "bare")

    load(kept, first, "one")
    loaded = load(bare, first, "one", with_optimizer=False)

    assert loaded.step == 0
    assert same(last(kept), last(bare))
    window(kept, 2)
    window(bare, 2)
    assert not same(last(kept), last(bare))


def test_loading_replaces_weights_for_good_and_drops_what_was_gathered(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    window(adapter, 1)
    save(adapter, "one")
    expected = last(adapter)
    window(adapter, 2)
    adapter.forward_backward(3)

    load(adapter, adapter, "one")
    nothing = adapter.step(weight_decay=0.5)

    assert (nothing.applied, nothing.step) == (False, 1)
    assert same(last(adapter), expected)


def test_a_checkpoint_saved_inside_a_window_continues_inside_it(serve: Serve) -> None:
    office = serve()
    whole, heir = create(office, "whole"), create(office, "heir")
    window(whole, 1)
    whole.forward_backward(2)
    saved = save(whole, "midway")
    whole.forward_backward(3)
    whole.step()

    load(heir, whole, "midway")
    heir.forward_backward(3)
    step = heir.step()

    assert saved.step == 1
    assert (step.step, step.tokens) == (2, 24)
    assert same(last(heir), last(whole))


def test_saving_and_publishing_leave_an_open_window_as_it_is(serve: Serve) -> None:
    office = serve()
    plain, watched = create(office, "plain"), create(office, "watched")

    for adapter in (plain, watched):
        window(adapter, 1)
        adapter.forward_backward(2)
        if adapter is watched:
            save(adapter, "midway")
            publish(adapter)
        adapter.forward_backward(3)
        assert adapter.step().tokens == 24

    assert same(last(plain), last(watched))


def test_names_are_used_once_resends_are_not_new_saves_and_overwriting_is_asked_for(serve: Serve) -> None:
    adapter = create(serve(), "poet")
    first = SaveCheckpoint(name="one", **adapter.next())
    saved = adapter.office.ask(first, CheckpointSaved)
    window(adapter, 1)

    assert adapter.office.ask(first, CheckpointSaved) == saved
    assert adapter.refused(SaveCheckpoint, name="one").code == "checkpoint_exists"
    assert adapter.refused(SaveCheckpoint, name="../one").code == "invalid_name"
    assert adapter.refused(SaveCheckpoint, name="(automatic)").code == "invalid_name"
    assert save(adapter, "one", overwrite=True).step == 1


def test_a_checkpoint_that_does_not_fit_is_refused_with_the_difference_and_does_no_harm(
    serve: Serve,
) -> None:
    office = serve()
    source, other = create(office, "source", rank=4), create(office, "other", rank=8, alpha=9.0)
    save(source, "one")
    other.forward_backward(1)

    error = other.refused(LoadCheckpoint, source=source.id, name="one")
    missing = other.refused(LoadCheckpoint, source=source.id, name="two")

    assert error.code == "checkpoint_mismatch"
    assert "rank 4 is not 8" in error.message
    assert "alpha 8.0 is not 9.0" in error.message
    assert missing.code == "checkpoint_not_found"
    assert other.step().tokens == 12


# --- restarts --------------------------------------------------------------------------------------


def test_a_clean_stop_loses_no_step_and_old_lanes_are_lost(open_office: OpenOffice) -> None:
    office = open_office("trainer.slots=1")
    trainer, _ = start(office)
    first, second, idle = (create(office, name) for name in ("first", "second", "idle"))
    for data in (1, 2):
        window(first, data)
        window(second, data + 10)
    expected = last(first), last(second), last(idle)
    first.forward_backward(5)  # an open window: its gradients are its lane's, and end with it

    stop(office, trainer)
    trainer, ready = start(office)

    assert ready.adapters == 3
    lost = first.refused(OptimStep, learning_rate=0.1)
    assert (lost.code, lost.retryable) == ("lane_lost", True)
    assert "step 2" in lost.message
    for adapter, before in zip((first, second, idle), expected, strict=True):
        adapter.reopen()
        assert same(last(adapter), before)
    assert (first.details.step, second.details.step, idle.details.step) == (2, 2, 0)
    assert first.step().applied is False
    window(second, 3)
    assert office.refused(ListAdapters(name="nobody")).code == "adapter_not_found"
    stop(office, trainer)


def test_a_stop_and_a_start_change_nothing_in_the_run(open_office: OpenOffice, serve: Serve) -> None:
    whole = create(serve(), "whole")
    for data in (1, 2, 3, 4):
        window(whole, data)

    office = open_office()
    trainer, _ = start(office)
    adapter = create(office, "poet")
    for data in (1, 2, 3, 4):
        window(adapter, data)
        stop(office, trainer)
        trainer, _ = start(office)
        adapter.reopen()

    assert same(last(adapter), last(whole))
    stop(office, trainer)


def test_a_stop_snapshots_only_what_did_something(open_office: OpenOffice) -> None:
    office = open_office()
    trainer, _ = start(office)
    adapter, idle = create(office, "poet"), create(office, "idle")
    window(adapter, 1)
    save(adapter, "one")

    stop(office, trainer)
    trainer, _ = start(office)
    stop(office, trainer)

    assert len(list((office.layout.adapter(adapter.id) / "checkpoints").iterdir())) == 1
    assert [path.name for path in office.layout.snapshots(adapter.id).iterdir()] == ["2"]
    assert not office.layout.snapshots(idle.id).exists()


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_what_is_damaged_gives_way_to_what_was_before_it(open_office: OpenOffice) -> None:
    office = open_office()
    trainer, _ = start(office)
    adapter = create(office, "poet")
    window(adapter, 1)
    save(adapter, "one")
    expected = last(adapter)
    window(adapter, 2)
    save(adapter, "two")
    stop(office, trainer)
    damage(office.layout.checkpoint(adapter.id, "two") / "2" / "state.safetensors")
    damage(office.layout.snapshots(adapter.id) / "3" / "main.safetensors")

    trainer, _ = start(office)
    adapter.reopen()

    assert adapter.details.step == 1
    assert same(last(adapter), expected)
    assert adapter.refused(LoadCheckpoint, source=adapter.id, name="two").code == "checkpoint_mismatch"
    stop(office, trainer)


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(30)


def test_a_killed_trainer_without_a_journal_is_at_its_checkpoint_and_a_terminated_one_where_it_was(
    open_office: OpenOffice, processes: list["subprocess.Popen[bytes]"]
) -> None:
    office = open_office()
    processes.append(start_process(office))
    office.wait_for_report(ActorReady)
    adapter, loaded = create(office, "poet"), create(office, "loaded")
    window(adapter, 1)
    save(adapter, "one")
    window(adapter, 2)
    load(loaded, adapter, "one", with_optimizer=False)
    said_loaded = last(loaded)
    at_two = last(adapter)
    window(adapter, 3)

    processes[-1].send_signal(signal.SIGKILL)
    assert processes[-1].wait(30) == -signal.SIGKILL
    processes.append(start_process(office))
    office.wait_for_report(ActorReady)

    lost = adapter.refused(OptimStep, learning_rate=0.1)
    assert "step 1" in lost.message
    for each in (adapter, loaded):
        each.reopen()
    assert same(last(loaded), said_loaded)
    window(adapter, 2)
    assert same(last(adapter), at_two)

    processes[-1].send_signal(signal.SIGTERM)
    assert processes[-1].wait(30) == 0
    trainer, _ = start(office)
    adapter.reopen()
    assert adapter.details.step == 2
    assert same(last(adapter), at_two)
    stop(office, trainer)


def test_a_trainer_that_cannot_start_says_why_in_one_line(
    open_office: OpenOffice, processes: list["subprocess.Popen[bytes]"]
) -> None:
    office = open_office()
    office.close()

    processes.append(start_process(office))

    assert processes[-1].wait(60) == 3
    said = said_file(office).read_text()
    assert said.count("\n") == 1
    assert "no daemon runs" in said


# --- published versions ----------------------------------------------------------------------------


def test_a_version_loads_in_peft_and_says_what_the_trainer_says(serve: Serve, loop_model: Path) -> None:
    adapter = create(serve(), "poet")
    for data in (1, 2):
        window(adapter, data)

    record = publish(adapter)

    assert (record.number, record.step, record.modules) == (1, 2, 14)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(loop_model), record.directory)
    tokens = torch.tensor([record.probe_tokens])
    with torch.no_grad():
        logprobs = model(tokens).logits.float().log_softmax(-1)[0, :-1]
    theirs = logprobs.gather(-1, tokens[0, 1:, None])[:, 0].numpy()
    assert np.abs(theirs - np.array(record.probe_logprobs)).max() < 1e-4


def test_versions_are_immutable_and_their_numbers_go_on_after_a_restart(open_office: OpenOffice) -> None:
    office = open_office()
    trainer, _ = start(office)
    adapter = create(office, "poet")
    first = publish(adapter)
    before = Path(first.directory, "adapter_model.safetensors").read_bytes()
    window(adapter, 1)
    second = publish(adapter)
    office.tell(DropVersion(adapter=adapter.id, version=second.number))
    third = publish(adapter)
    stop(office, trainer)

    trainer, ready = start(office)
    adapter.reopen()
    fourth = publish(adapter)

    assert [record.number for record in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert ready.versions == (first, third)
    assert adapter.details.version == 3
    assert Path(first.directory, "adapter_model.safetensors").read_bytes() == before
    assert not Path(second.directory).exists()
    assert second.digest == third.digest != first.digest
    stop(office, trainer)


def test_a_resent_publish_writes_one_version(serve: Serve) -> None:
    adapter = create(serve(), "poet")
    operation = PublishAdapter(**adapter.next())

    first = adapter.office.ask(operation, VersionWritten)
    again = adapter.office.ask(operation, VersionWritten)

    assert first == again
    assert len(list(Path(first.record.directory).parent.iterdir())) == 1


def test_versions_of_a_deleted_adapter_stay_until_the_broker_drops_them(open_office: OpenOffice) -> None:
    office = open_office()
    trainer, _ = start(office)
    adapter, forgotten = create(office, "poet"), create(office, "forgotten")
    dropped, left = publish(adapter), publish(forgotten)

    for each in (adapter, forgotten):
        office.ask(DeleteAdapter(adapter=each.id), Done)
    assert Path(dropped.directory).exists()
    office.tell(DropVersion(adapter=adapter.id, version=1))
    stop(office, trainer)
    assert not Path(dropped.directory).exists()
    trainer, ready = start(office)

    assert ready.versions == ()
    assert not Path(left.directory).exists()
    stop(office, trainer)


def test_an_import_of_a_published_version_says_the_same_and_survives_a_crash_free_restart(
    serve: Serve,
) -> None:
    office = serve()
    source, heir = create(office, "source"), create(office, "heir", seed=9)
    window(source, 1)
    directory = Path(publish(source).directory)
    config_json = (directory / "adapter_config.json").read_text()
    weights = np.frombuffer((directory / "adapter_model.safetensors").read_bytes(), np.uint8)

    loaded = heir.run(ImportWeights, StateLoaded, config_json=config_json, safetensors=weights)

    assert loaded.step == 0
    assert same(last(heir), last(source))
    heir.forward_backward(1)
    wrong = json.dumps({**json.loads(config_json), "r": 3})
    error = heir.refused(ImportWeights, config_json=wrong, safetensors=weights)
    assert error.code == "checkpoint_mismatch"
    assert heir.step().applied
