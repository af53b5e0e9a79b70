"""One daemon with the embedded engine, and everything that people do with it."""

import hashlib
import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from loractl.bus.client import Client
from loractl.bus.ids import TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import CreateAdapter, LoraSpec
from loractl.client import connect, supervised_datum

STEPS = 24


@pytest.fixture(scope="module")
def state_dir(state_dir: Path) -> Path:
    """One that loractl makes."""
    return state_dir / "made"


@pytest.fixture(scope="module", autouse=True)
def daemon(loractl, tiny_model):
    outcome = loractl.start(tiny_model, "sampler.engine=torch", "trainer.slots=12", "trainer.threads=1")
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def train(rows):
    """Train an adapter of a name, always with the same settings: ends of runs can be compared."""
    return (
        "train",
        rows,
        "--rank",
        "4",
        "--lr",
        "1e-2",
        "--batch-size",
        "4",
        "--save-every",
        "5",
        "--adapter",
    )


def weights_digest(loractl, name: str) -> str:
    shown = json.loads(loractl("adapters", "show", name, "--json").out)
    return shown["versions"][-1]["digest"]


@pytest.fixture(scope="module")
def uninterrupted(loractl, train) -> str:
    """The digest of the weights after `STEPS` steps in one go."""
    outcome = loractl(*train, "straight", "--max-steps", str(STEPS))
    assert outcome.code == 0, outcome.err
    assert "published straight version 1 (step 24): served by sampler-0 (torch" in outcome.out
    assert "probe logprobs within" in outcome.out
    return weights_digest(loractl, "straight")


def test_a_started_daemon_says_what_to_type_next(daemon, loractl):
    assert daemon.out == ""
    assert "serving tiny" in daemon.err
    assert f"loractl train --state-dir {loractl.state_dir} DATA.jsonl --adapter NAME" in daemon.err


def test_a_second_daemon_on_the_same_state_is_refused(loractl, tiny_model):
    outcome = loractl.start(tiny_model)

    assert outcome.code == 2
    assert outcome.err.startswith("error: a daemon (pid ")


def test_another_base_model_than_the_running_daemons_is_refused(loractl, tiny_model, rows):
    outcome = loractl("train", rows, "--adapter", "x", "--base-model", f"other={tiny_model}")

    assert outcome.code == 2
    assert "serves 'tiny', not 'other'" in outcome.err


def test_the_status_shows_every_actor(loractl):
    table = loractl("daemon", "status")
    data = json.loads(loractl("daemon", "status", "--json").out)

    assert "trainer\tready\t" in table.out
    assert {actor["actor"]: actor["phase"] for actor in data["daemon"]["actors"]} == {
        "trainer": "ready",
        "sampler-0": "ready",
    }
    assert data["daemon"]["base_model"] == "tiny"


def test_a_run_tells_loss_rate_and_gradient_norm_as_plain_lines(loractl, train):
    outcome = loractl(*train, "lines", "--max-steps", "3")

    lines = [line for line in outcome.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all("loss" in line and "grad norm" in line and "tokens/s" in line for line in lines)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses[-1] < losses[0] < 8.0  # a mean per token: a random model of 1024 words begins near 6.9


def test_an_adapter_is_never_trained_twice_by_accident(loractl, train, uninterrupted):
    outcome = loractl(*train, "straight")

    assert outcome.code == 2
    assert "--resume" in outcome.err
    assert "loractl adapters rm straight" in outcome.err


def test_a_resumed_run_ends_bit_for_bit_as_one_in_one_go(loractl, train, rows, uninterrupted):
    assert loractl(*train, "resumed", "--max-steps", "7").code == 0

    outcome = loractl("train", rows, "--adapter", "resumed", "--resume", "--max-steps", str(STEPS))

    assert outcome.code == 0, outcome.err
    assert "from step 7" in outcome.err
    assert weights_digest(loractl, "resumed") == uninterrupted


def test_a_resumed_run_says_where_its_checkpoint_is_not_where_the_adapter_went_since(
    loractl, train, rows, uninterrupted
):
    assert loractl(*train, "went-on", "--max-steps", "7").code == 0
    with connect(str(loractl.state_dir)) as service:
        text = service.text.prompt("The sea is wide.", raw=True)
        adapter = service.open_adapter("went-on")
        adapter.forward_backward([supervised_datum(text, trained=[True] * len(text))])
        adapter.optim_step(1e-2).result()
        adapter.save("another").result()

    outcome = loractl("train", rows, "--adapter", "went-on", "--resume", "--max-steps", str(STEPS))

    assert outcome.code == 0, outcome.err
    assert "from step 7" in outcome.err
    assert weights_digest(loractl, "went-on") == uninterrupted


def test_a_finished_run_has_nothing_left_to_resume(loractl, rows, uninterrupted):
    outcome = loractl("train", rows, "--adapter", "straight", "--resume")

    assert outcome.code == 0, outcome.err
    assert "nothing is left to train" in outcome.err


def test_a_resumed_run_must_be_the_same_run(loractl, train, rows, uninterrupted, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "a", "completion": "b"}\n')

    rank = loractl("train", rows, "--adapter", "straight", "--resume", "--rank", "8")
    data = loractl("train", other, "--adapter", "straight", "--resume")
    nobody = loractl(*train, "nobody", "--resume")

    assert rank.code == data.code == nobody.code == 2
    assert "--rank 8 (so far: 4)" in rank.err
    assert f"1 rows from {other}" in data.err
    assert "leave out --resume" in nobody.err


def test_ctrl_c_leaves_an_adapter_that_goes_on_to_the_same_end(loractl, train, rows, uninterrupted):
    run = loractl.running(*train, "stopped", "--max-steps", str(STEPS * 100))
    run.until("step 1/")
    run.interrupt()
    stopped = run.end()

    assert stopped.code == 130
    assert "stopping: waiting for the steps in hand" in stopped.err
    assert stopped.err.splitlines()[-1].endswith("--adapter=stopped --resume")
    details = json.loads(loractl("adapters", "show", "stopped", "--json").out)["adapter"]
    assert details["step"] == details["checkpoint_step"] > 0
    if details["step"] <= STEPS:
        loractl("train", rows, "--adapter", "stopped", "--resume", "--max-steps", str(STEPS))
        assert weights_digest(loractl, "stopped") == uninterrupted


def test_a_killed_trainer_costs_a_run_a_pause_and_not_a_bit(loractl, train, uninterrupted):
    state = json.loads(loractl("daemon", "status", "--json").out)
    trainer = next(a["pid"] for a in state["daemon"]["actors"] if a["actor"] == "trainer")
    run = loractl.running(*train, "killed", "--max-steps", str(STEPS))
    run.until("step 6/")
    os.kill(trainer, signal.SIGKILL)
    meanwhile = loractl("daemon", "status")
    ended = run.end()

    assert "the trainer cannot list them at the moment" in meanwhile.out
    assert ended.code == 0, ended.err
    steps = [line.split()[1] for line in ended.err.splitlines() if line.startswith("step ")]
    assert steps == [f"{step}/{STEPS}" for step in range(1, STEPS + 1)]
    assert weights_digest(loractl, "killed") == uninterrupted


def test_samples_are_streamed_and_a_seed_repeats_them(loractl, uninterrupted):
    question = ("sample", "--adapter", "straight", "--max-tokens", "12", "--seed", "3", "Question 1?")

    first, second = loractl(*question), loractl(*question)
    piped = loractl(*question[:-1], "-", stdin="Question 1?\n")

    assert first.code == 0, first.err
    assert first.out == second.out == piped.out
    assert first.out.endswith("\n")
    assert first.err.startswith("[straight version 1, torch: ")


def test_samples_as_json_carry_tokens_logprobs_and_the_version(loractl, uninterrupted):
    question = (
        "sample",
        "--adapter",
        "straight",
        "--version",
        "1",
        "--json",
        "--max-tokens",
        "5",
        "-n",
        "2",
        "hi",
    )

    data = json.loads(loractl(*question).out)

    assert (data["version"], data["engine"], len(data["samples"])) == (1, "torch", 2)
    for sample in data["samples"]:
        assert len(sample["tokens"]) == len(sample["logprobs"]) <= 5
        assert sample["stop_reason"] in ("length", "stop")


def test_the_base_model_answers_without_an_adapter(loractl):
    chat = json.loads(loractl("sample", "--json", "--max-tokens", "3", "hello").out)
    raw = json.loads(loractl("sample", "--json", "--max-tokens", "3", "--raw", "hello").out)

    assert chat["version"] == raw["version"] == 0
    assert len(chat["prompt_tokens"]) > len(raw["prompt_tokens"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--adapter", "nobody", "hi"], "nobody"),
        (["--adapter", "straight", "--version", "9", "hi"], "'straight' has no version 9"),
        (["--temperature", "-1", "hi"], "temperature"),
        ([""], "the prompt is empty"),
    ],
)
def test_a_sample_that_cannot_be_is_one_line(loractl, uninterrupted, arguments, says):
    outcome = loractl("sample", *arguments)

    assert outcome.code == 2
    assert outcome.out == ""
    assert says in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_an_adapter_travels_out_and_in_again(loractl, uninterrupted, tmp_path):
    exported = loractl("adapters", "export", "straight", tmp_path / "peft")
    again = loractl("adapters", "export", "straight", tmp_path / "peft")
    imported = loractl("adapters", "import", tmp_path / "peft", "travelled")

    assert exported.code == 0, exported.err
    assert {f.name for f in (tmp_path / "peft").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert (
        hashlib.sha256((tmp_path / "peft" / "adapter_model.safetensors").read_bytes()).hexdigest()
        == uninterrupted
    )
    assert (again.code, "not empty" in again.err) == (2, True)
    assert imported.code == 0, imported.err
    assert "published travelled version 1" in imported.out
    question = ("--temperature", "0", "--max-tokens", "8", "Question 2?")
    assert (
        loractl("sample", "--adapter", "travelled", *question).out
        == loractl("sample", "--adapter", "straight", *question).out
    )


def test_a_failed_import_leaves_no_adapter_behind(loractl, uninterrupted, tmp_path):
    loractl("adapters", "export", "straight", tmp_path / "peft")
    (tmp_path / "peft" / "adapter_model.safetensors").write_bytes(b"torn")

    outcome = loractl("adapters", "import", tmp_path / "peft", "torn")

    assert outcome.code == 2
    assert loractl("adapters", "show", "torn").code == 2


def test_adapters_are_listed_shown_and_removed(loractl, train):
    loractl(*train, "brief", "--max-steps", "1")

    listed = loractl("adapters", "list")
    shown = loractl("adapters", "show", "brief")
    removed = loractl("adapters", "rm", "brief")

    assert "brief\t4\t1\t1\t1\tregistered\tdevice\t" in listed.out
    assert re.search(r"^step +1, saved at 1$", shown.out, re.MULTILINE)
    assert removed.code == 0
    assert loractl("adapters", "rm", "brief").code == 2
    assert "brief" not in [a["name"] for a in json.loads(loractl("adapters", "list", "--json").out)]
    assert loractl(*train, "brief", "--max-steps", "1").code == 0


def test_the_adapters_and_the_usage_of_every_tenant_are_the_owners_to_see(loractl, uninterrupted):
    with Client(StateLayout(loractl.state_dir), TenantId("ann")) as ann:
        ann.request(CreateAdapter(name="poet", lora=LoraSpec(rank=4, alpha=8.0, seed=1)), timeout_s=60)

    own, hers, everybodys = (
        {
            (each["tenant"], each["name"])
            for each in json.loads(loractl("adapters", "list", "--json", *whose).out)
        }
        for whose in ((), ("--tenant", "ann"), ("--all",))
    )
    usage = {each["tenant"]: each for each in json.loads(loractl("usage", "--json").out)}

    assert hers == {("ann", "poet")}
    assert ("local", "straight") in own
    assert everybodys == own | hers
    assert usage.keys() == {"ann", "local"}
    assert (usage["ann"]["adapters"], usage["ann"]["usage"]["tokens"]) == (1, 0)
    assert usage["local"]["usage"]["steps"] > 0
    assert usage["local"]["usage"]["disk_ms"] > 0
    assert loractl("usage").out.splitlines()[1].startswith("ann\t1\t")
    assert loractl("adapters", "list", "--all").out.startswith("TENANT\tADAPTER\t")
    assert "nobody has no adapters" in loractl("adapters", "list", "--tenant", "nobody").err
    assert loractl("adapters", "list", "--tenant", "ann", "--all").code == 2


def test_policy_losses_learn_from_what_sample_prints(loractl, uninterrupted, tmp_path):
    data = json.loads(
        loractl("sample", "--json", "-n", "4", "--max-tokens", "6", "--adapter", "straight", "hi").out
    )
    file = tmp_path / "sampled.jsonl"
    with file.open("w") as stream:
        for index, sample in enumerate(data["samples"]):
            row = {
                "prompt_tokens": data["prompt_tokens"],
                "tokens": sample["tokens"],
                "logprobs": sample["logprobs"],
                "advantage": 1.0 - 2.0 * (index % 2),
            }
            stream.write(json.dumps(row) + "\n")

    for loss in ("importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce"):
        outcome = loractl("train", file, "--adapter", loss, "--loss", loss, "--rank", "4", "--max-steps", "2")
        assert outcome.code == 0, outcome.err


def test_python_users_have_the_same_in_a_few_calls(loractl):
    datum = supervised_datum([1, 5, 9, 12, 2], [False, False, True, True, True])

    with connect(str(loractl.state_dir)) as service:
        adapter = service.create_adapter("from-python", rank=2, alpha=4.0, train_mlp=False)
        before = adapter.forward_backward([datum]).result().metrics["loss:sum"]
        steps = [adapter.optim_step(1e-2).result().step]
        adapter.save("early").result()
        for _ in range(3):
            adapter.forward_backward([datum])
            steps.append(adapter.optim_step(1e-2).result().step)
        after = adapter.forward_backward([datum], forward_only=True).result().metrics["loss:sum"]
        receipt = adapter.publish().result()
        loaded = adapter.load("early").result()
        sampled = service.sample([1, 5, 9], adapter="from-python", max_tokens=3, temperature=0.0)
        again = service.open_adapter("from-python")
        service.delete_adapter("from-python")

    assert steps == [1, 2, 3, 4]
    assert after < before
    assert (receipt.record.number, receipt.record.step, receipt.sampler) == (1, 4, "sampler-0")
    assert loaded.step == again.details.step == 1
    assert (sampled.version, len(sampled.texts)) == (1, 1)


def test_the_logs_of_all_processes_are_one_story(loractl):
    outcome = loractl("daemon", "logs", "-n", "0")

    assert outcome.code == 0
    assert "actor.spawned  actor=trainer" in outcome.out
    assert "sampler-0 " in outcome.out


def test_what_lies_in_the_state_directory_is_for_its_user_alone(loractl, uninterrupted):
    # `walk` passes over what goes meanwhile: the daemon lets old versions and snapshots go.
    folders = [(Path(folder), files) for folder, _, files in os.walk(loractl.state_dir)]
    made = [path for folder, files in folders for path in (folder, *(folder / name for name in files))]

    def is_open_to_others(path: Path) -> bool:
        with suppress(FileNotFoundError):
            return bool(path.stat().st_mode & 0o077) and not path.is_socket()
        return False

    open_to_others = [path for path in made if is_open_to_others(path)]

    assert {"training", "daemon.out", "journal.sqlite"} <= {path.name for path in made}
    assert open_to_others == []


def test_stopping_ends_everything(loractl):
    """Stays the last of this file."""
    assert loractl("daemon", "stop").code == 0

    assert loractl("daemon", "status").code == 2
    assert loractl("daemon", "stop").code == 2
    assert not list((loractl.state_dir / "run").glob("*.sock"))
