"""An adapter's past: shown, forked and proved, from the journal of a real daemon."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace

import pytest
from loractl.bus.client import Client
from loractl.bus.config import (
    Config,
    DaemonConfig,
    FairnessConfig,
    QuotasConfig,
    TrainerConfig,
    load_config,
)
from loractl.bus.errors import AdapterNotFound, InvalidRequest
from loractl.bus.ids import LOCAL_TENANT, AdapterId
from loractl.bus.messages import Done, UnloadAdapter
from loractl.client import connect, supervised_datum
from loractl.client.adapter import Adapter
from loractl.client.history import read_history
from loractl.client.service import Service
from loractl.client.tiny_model import make_tiny_model
from loractl.client.verify_work import alone_like, verify_adapter
from loractl.daemon.launch import running_daemon
from loractl.tests.daemon.real_daemon import free_address

STEPS = 8


@pytest.fixture(scope="module", autouse=True)
def daemon(loractl, tiny_model):
    # It listens on tcp, too: that is nothing for the daemon that `verify` starts.
    assert loractl("keys", "curve").code == 0
    listen = f"daemon.listen={free_address()}"
    outcome = loractl.start(tiny_model, "sampler.count=0", "trainer.threads=1", listen)
    assert outcome.code == 0, outcome.err


@pytest.fixture(scope="module")
def train(loractl, rows):
    def train(name: str, steps: int, *more: str) -> None:
        settings = ("--rank", "4", "--lr", "1e-2", "--batch-size", "4", "--save-every", "4", "--max-steps")
        outcome = loractl("train", rows, "--adapter", name, *settings, str(steps), *more)
        assert outcome.code == 0, outcome.err

    return train


@pytest.fixture(scope="module", autouse=True)
def pirate(train):
    train("pirate", STEPS)


def test_the_history_tells_every_operation_in_the_order_in_which_it_ended(loractl):
    outcome = loractl("adapters", "history", "pirate", "--json")

    data = json.loads(outcome.out)
    operations = [each["operation"] for each in data["operations"]]
    steps = [each["step"] for each in data["operations"] if each["operation"] == "optim_step"]
    assert data["from_creation"]
    assert operations.count("forward_backward") == STEPS
    assert steps == list(range(1, STEPS + 1))
    assert {each["state"] for each in data["operations"]} == {"done"}
    assert "in the journal: all of it" in loractl("adapters", "history", "pirate").err


def test_a_fork_is_what_the_adapter_was_at_that_step_to_the_bit(loractl, train):
    train("short", STEPS // 2)

    outcome = loractl("adapters", "fork", "pirate", "earlier", "--at-step", str(STEPS // 2))

    assert outcome.code == 0, outcome.err
    assert f"earlier is pirate as it was at step {STEPS // 2}" in outcome.err
    assert "not the journal's" not in outcome.err
    assert weights_of(loractl, "earlier") == weights_of(loractl, "short")


def weights_of(loractl, name: str) -> str:
    """The digest of the present weights, as a version has it."""
    with connect(str(loractl.state_dir)) as service:
        return service.open_adapter(name).publish().result().record.digest


def test_a_fork_at_a_step_that_never_was_is_refused_and_leaves_nothing(loractl):
    outcome = loractl("adapters", "fork", "pirate", "later", "--at-step", "999")

    assert outcome.code == 2
    assert "the journal has no step 999 of this adapter; it has" in outcome.err
    assert loractl("adapters", "show", "later").code == 2


@pytest.fixture
def cut(loractl) -> Iterator[Adapter]:
    """An adapter at step 1, of which retention took the beginning."""
    with connect(str(loractl.state_dir)) as service:
        adapter = service.create_adapter_like("cut", service.details("pirate").lora)
        train_once(service, adapter)
        with sqlite3.connect(loractl.state_dir / "journal.sqlite") as journal:
            journal.execute("INSERT INTO clipped VALUES (?)", (adapter.id,))
        yield adapter
        for each in ("cut", "branch"):
            with contextlib.suppress(AdapterNotFound):
                service.delete_adapter(each)


@pytest.mark.parametrize("at_step", [("--at-step", "1"), ()])
def test_an_adapter_whose_beginning_is_gone_is_forked_as_it_is_now_from_its_checkpoint(loractl, cut, at_step):
    refused = loractl("adapters", "fork", "cut", "branch", *at_step)
    cut.save("now").result()

    outcome = loractl("adapters", "fork", "cut", "branch", *at_step)

    assert (refused.code, outcome.code) == (2, 0), outcome.err
    assert "save it (`save` of the Python client) and fork it again" in " ".join(refused.err.split())
    assert "branch is cut as it was at step 1: loaded from checkpoint 'now'" in outcome.err
    assert weights_of(loractl, "branch") == weights_of(loractl, "cut")


def test_a_fork_from_a_checkpoint_has_no_gradients_that_an_unload_took(loractl, cut):
    with connect(str(loractl.state_dir)) as service:
        text = service.text.prompt("A gale.", raw=True)
    cut.forward_backward([supervised_datum(text, trained=[True] * len(text))])
    cut.save("now").result()
    with Client(load_config(state_dir=str(loractl.state_dir), environ={})) as client:
        assert isinstance(client.request(UnloadAdapter(adapter=cut.id)), Done)

    outcome = loractl("adapters", "fork", "cut", "branch")

    assert outcome.code == 0, outcome.err
    with connect(str(loractl.state_dir)) as service:
        assert not service.details("branch").open_window
        for name in ("cut", "branch"):
            train_once(service, service.open_adapter(name))
    assert weights_of(loractl, "branch") == weights_of(loractl, "cut")


def test_an_adapter_whose_beginning_is_gone_is_not_forked_from_a_checkpoint_of_before(loractl, cut):
    cut.save("old").result()
    with connect(str(loractl.state_dir)) as service:
        train_once(service, cut)
    [description] = (loractl.state_dir / "adapters" / cut.id).glob("checkpoints/*/*/checkpoint.json")

    older = [loractl("adapters", "fork", "cut", "branch", *at) for at in ((), ("--at-step", "1"))]
    description.write_text(description.read_text().replace('"step":1', '"step":2'))
    other = loractl("adapters", "fork", "cut", "branch")

    assert [each.code for each in (*older, other)] == [2, 2, 2]
    assert all("does not go back to this adapter's beginning" in each.err for each in older)
    assert "checkpoint 'old' is not what cut is now" in other.err
    assert loractl("adapters", "show", "branch").code == 2


def test_an_adapter_is_proved_to_be_what_it_would_be_alone_and_again_while_it_trains(loractl, capsys):
    outcome = loractl("verify", "pirate")
    lanes = lanes_with_digests(loractl, "pirate")

    with connect(str(loractl.state_dir)) as service:
        pirate = service.open_adapter("pirate")

        @contextlib.contextmanager
        def start(alone: Config) -> Iterator[None]:
            train_once(service, pirate)
            with running_daemon(alone):
                yield

        config = load_config(state_dir=str(loractl.state_dir), environ={})
        capsys.readouterr()
        code = verify_adapter(config, "pirate", LOCAL_TENANT, start)

    again = capsys.readouterr().err
    assert outcome.code == code == 0, outcome.err + again
    saves = STEPS // 4 + 1  # every four steps, and at the end
    answers = f"{2 * STEPS + saves} answers (of them {saves} digests of what was saved)"
    proof = f"pirate is to the bit what it would be alone: {answers}, and its weights, moments and gradients"
    assert proof in outcome.err
    assert proof in again, "what it did since is nobody's fault"
    assert len(lanes) == 1, "of its own, and used again"
    assert lanes_with_digests(loractl, "pirate") == lanes


def test_the_trainer_that_proves_it_has_the_models_settings_and_nothing_that_is_for_others(tmp_path):
    running = Config(
        trainer=TrainerConfig(pass_tokens=17, keep_checkpoints=5),
        daemon=DaemonConfig(http="auto", listen="tcp://127.0.0.1:1", chaos=7),
        quotas=QuotasConfig(adapters=1, state_bytes=1, checkpoint_bytes=1, requests_per_s=1.0),
        fairness=FairnessConfig(weights="alice=2"),
    )

    alone = alone_like(running, tmp_path)

    assert alone.trainer == TrainerConfig(pass_tokens=17, keep_checkpoints=1)
    assert (alone.sampler.count, alone.fairness) == (0, FairnessConfig())
    assert (alone.daemon.http, alone.daemon.listen, alone.daemon.chaos) == ("none", "", 0)
    assert not any(getattr(alone.quotas, each) for each in ("adapters", "state_bytes", "queued_tokens"))


def test_an_adapter_that_loaded_a_checkpoint_of_another_is_proved_from_there(loractl):
    with connect(str(loractl.state_dir)) as service:
        pirate = service.open_adapter("pirate")
        pirate.save("kept").result()
        parrot = service.create_adapter_like("parrot", pirate.details.lora)
        parrot.load("kept", source=pirate.id).result()
        parrot.optim_step(1e-3).result()

    outcome = loractl("verify", "parrot")

    assert outcome.code == 0, outcome.err


def train_once(service: Service, adapter: Adapter) -> None:
    text = service.text.prompt("The sea is wide.", raw=True)
    adapter.forward_backward([supervised_datum(text, trained=[True] * len(text))])
    adapter.optim_step(1e-2).result()


def lanes_with_digests(loractl, name: str) -> set[str]:
    with Client(load_config(state_dir=str(loractl.state_dir), environ={})) as client:
        entries, _ = read_history(client, adapter_of(loractl, name), LOCAL_TENANT)
    return {each.lane for each in entries if each.operation == "digest_state"}


def adapter_of(loractl, name: str) -> AdapterId:
    with connect(str(loractl.state_dir)) as service:
        return service.details(name).adapter


@pytest.fixture
def loaded(loractl) -> Iterator[tuple[str, str]]:
    """Two adapters, the second of which began with the first one's checkpoint "start"."""
    with connect(str(loractl.state_dir)) as service:
        spec = service.details("pirate").lora
        first = service.create_adapter_like("first", spec)
        first.save("start").result()
        second = service.create_adapter_like("second", spec)
        second.load("start", source=first.id).result()
        yield "first", "second"
        for each in ("first", "second"):
            with contextlib.suppress(AdapterNotFound):
                service.delete_adapter(each)


def test_what_an_adapter_was_loaded_from_and_is_no_longer_kept_is_told(loractl, loaded):
    first, second = loaded
    with connect(str(loractl.state_dir)) as service:
        service.delete_adapter(first)

    for command in (("verify", second), ("adapters", "fork", second, "third")):
        outcome = loractl(*command)

        assert outcome.code == 2, outcome.err
        assert "checkpoint 'start', which it was loaded from, is no longer kept" in outcome.err


def test_a_checkpoint_that_was_saved_anew_is_told_and_nobody_accused(loractl, loaded):
    first, second = loaded
    with connect(str(loractl.state_dir)) as service:
        adapter = service.open_adapter(first)
        train_once(service, adapter)
        adapter.save("start", overwrite=True).result()

    for command in (("verify", second), ("adapters", "fork", second, "third")):
        outcome = loractl(*command)

        assert outcome.code == 2, outcome.err
        assert "checkpoint 'start', which it was loaded from, was saved anew" in outcome.err


def test_an_adapter_that_went_back_to_its_own_checkpoint_is_proved_also_when_that_was_saved_anew(loractl):
    """As `train --resume` does with every run."""
    with connect(str(loractl.state_dir)) as service:
        adapter = service.create_adapter_like("resumed", service.details("pirate").lora)
        train_once(service, adapter)
        for _ in range(2):
            adapter.save("train", overwrite=True).result()
            train_once(service, adapter)
            adapter.load("train").result()
            train_once(service, adapter)
        adapter.save("train", overwrite=True).result()

    proved = loractl("verify", "resumed")
    forked = loractl("adapters", "fork", "resumed", "resumed-fork", "--at-step", "3")

    assert proved.code == 0, proved.err
    words = " ".join(proved.err.split())
    assert (
        "resumed is to the bit what it would be alone: 7 answers (of them 1 digest of what was saved)"
        in words
    )
    assert forked.code == 0, forked.err
    assert "resumed-fork is resumed as it was at step 3: 6 operations ran again" in forked.err


def test_gradients_that_a_checkpoint_brought_and_an_unload_took_are_in_no_proof(loractl):
    with connect(str(loractl.state_dir)) as service:
        spec = service.details("pirate").lora
        first = service.create_adapter_like("saver", spec)
        train_once(service, first)
        text = service.text.prompt("A gale.", raw=True)
        first.forward_backward([supervised_datum(text, trained=[True] * len(text))])
        first.save("inside-a-window").result()
        service.create_adapter_like("unloaded", spec).load("inside-a-window", source=first.id).result()
    with Client(load_config(state_dir=str(loractl.state_dir), environ={})) as client:
        unload = UnloadAdapter(adapter=adapter_of(loractl, "unloaded"))
        assert isinstance(client.request(unload), Done)
    forked_before = loractl("adapters", "fork", "unloaded", "unloaded-fork", "--at-step", "1")
    with connect(str(loractl.state_dir)) as service:
        for name in ("unloaded", "unloaded-fork"):
            train_once(service, service.open_adapter(name))

    outcome = loractl("verify", "unloaded")

    assert outcome.code == 0, outcome.err
    assert "unloaded is to the bit what it would be alone: 4 answers, and its weights" in outcome.err
    assert forked_before.code == 0, forked_before.err
    assert weights_of(loractl, "unloaded") == weights_of(loractl, "unloaded-fork")


@pytest.mark.parametrize("command", [("adapters", "history"), ("adapters", "fork"), ("verify",)])
def test_with_a_daemon_elsewhere_nothing_is_done_to_the_one_here(loractl, command):
    (loractl.state_dir / "loractl.toml").write_text('[client]\nconnect = "tcp://192.0.2.1:1"\n')
    more = ("new",) if "fork" in command else ()

    outcome = loractl(*command, "pirate", *more)

    (loractl.state_dir / "loractl.toml").unlink()
    assert outcome.code == 2
    assert "tcp://192.0.2.1:1 is another daemon than this machine's" in outcome.err


def test_a_history_of_nobody_is_refused(loractl):
    assert loractl("adapters", "history", "nobody").code == 2
    assert loractl("verify", "nobody").code == 2


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """As the daemon's model, of other weights."""
    directory = tmp_path_factory.mktemp("other") / "tiny"
    make_tiny_model(directory, seed=1, steps=0)
    return directory


def test_nobody_is_accused_where_the_models_files_are_others_by_now(loractl, other_model):
    def start(alone: Config) -> contextlib.AbstractContextManager[None]:
        return running_daemon(replace(alone, model=replace(alone.model, path=str(other_model))))

    config = load_config(state_dir=str(loractl.state_dir), environ={})
    with pytest.raises(InvalidRequest, match="base model 'tiny' has other weights in"):
        verify_adapter(config, "pirate", LOCAL_TENANT, start)


def test_over_other_weights_of_the_same_name_an_adapter_is_refused_with_words_and_its_name_is_free(
    loractl, other_model, rows, train
):
    restarted = loractl("daemon", "restart", "--base-model", f"tiny={other_model}")
    assert restarted.code == 0, restarted.err

    for command in (
        ("verify", "pirate"),
        ("train", rows, "--adapter", "pirate", "--resume"),
    ):
        outcome = loractl(*command)

        assert outcome.code != 0
        assert "base model 'tiny' has other weights here than it had there" in outcome.err, command
    lists = (("adapters", "list"), ("adapters", "list", "--all"), ("adapters", "list", "--json"))
    for command in (*lists, ("daemon", "status")):
        outcome = loractl(*command)
        owner = "local/" if "--all" in command else ""
        names = f"adapters wait for another base model than this daemon's: {owner}earlier, {owner}"
        assert names in " ".join((outcome.out + outcome.err).split())
    train("pirate", 1)
