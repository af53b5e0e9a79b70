"""The SDK's RestClient, its command line and the cookbook's download against a whole service."""

import json
import urllib.request
import uuid
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pyrage
import pytest
from click.testing import CliRunner
from loractl.tests.tinker_bridge.served import MODEL, Served

tinker = pytest.importorskip("tinker")
safetensors = pytest.importorskip("safetensors.numpy")


class Trained(NamedTuple):
    """A run with a checkpoint of each kind, and its client. session: it is the run's."""

    client: Any
    run: str
    training: str
    sampler: str

    @property
    def session(self) -> str:
        return self.run.split(":")[0]


@pytest.fixture(scope="module")
def trained(sdk_environment: None) -> Iterator[Trained]:
    with tinker.ServiceClient(user_metadata={"who": "rest"}) as service:
        client = service.create_lora_training_client(
            base_model=MODEL, rank=4, seed=3, user_metadata={"renderer": "qwen3", "n": 1}
        ).result()
        training = client.save_state("a").result().path
        sampler = client.save_weights_for_sampler("a").result().path
        yield Trained(client, client.model_id, training, sampler)


@pytest.fixture
def rest(sdk_environment: None) -> Any:
    return tinker.RestClient()


def test_the_rest_client_reads_runs_checkpoints_and_weights(rest: Any, trained: Trained) -> None:
    run = rest.get_training_run(trained.run).result()
    by_path = rest.get_training_run_by_tinker_path(trained.training).result()
    listed = rest.list_training_runs(limit=1000).result()
    of_run = rest.list_checkpoints(trained.run).result().checkpoints
    of_user = rest.list_user_checkpoints(limit=1000).result()
    info = rest.get_weights_info_by_tinker_path(trained.sampler).result()

    assert run == by_path
    assert (run.base_model, run.lora_rank, run.model_owner, run.corrupted) == (MODEL, 4, "local", False)
    assert run.user_metadata == {"renderer": "qwen3", "n": "1"}
    assert run.last_checkpoint.tinker_path == trained.training
    assert run.last_sampler_checkpoint.tinker_path == trained.sampler
    assert trained.run in [each.training_run_id for each in listed.training_runs]
    assert listed.cursor.total_count >= 1
    assert {trained.training, trained.sampler} <= {each.tinker_path for each in of_run}
    assert {each.tinker_path for each in of_run} <= {each.tinker_path for each in of_user.checkpoints}
    assert all(each.time.tzinfo is not None and each.size_bytes > 0 for each in of_run)
    assert (info.base_model, info.lora_rank, info.is_lora) == (MODEL, 4, True)
    assert (info.train_attn, info.train_mlp, info.train_unembed) == (True, True, True)


def test_the_rest_client_reads_sessions_and_samplers(rest: Any, trained: Trained) -> None:
    sampling = trained.client.create_sampling_client(trained.sampler).result()

    session = rest.get_session(trained.session).result()
    samplers = [rest.get_sampler(each).result() for each in session.sampler_ids]
    found = rest.search_sessions(
        tinker.types.SessionSearchRequest(session_id=trained.session, user_metadata={"who": "rest"})
    ).result()

    assert sampling.get_base_model() == MODEL
    assert trained.session in rest.list_sessions(limit=1000).result().sessions
    assert session.training_run_ids == [trained.run]
    assert session.user_metadata == {"who": "rest"}
    assert [(each.base_model, each.model_path) for each in samplers] == [(MODEL, trained.sampler)]
    (summary,) = found.sessions
    assert (summary.session_id, summary.status.type) == (trained.session, "active")
    assert summary.checkpoints_count >= 2


def test_the_rest_client_changes_checkpoints(rest: Any, trained: Trained, served: Served) -> None:
    path = trained.client.save_state("changed").result().path
    other = tinker.RestClient(api_key=served.key_for(f"reader-{uuid.uuid4().hex[:8]}"))

    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    (shown,) = [e for e in rest.list_checkpoints(trained.run).result().checkpoints if e.tinker_path == path]
    assert shown.expires_at is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    with pytest.raises(tinker.BadRequestError):
        rest.set_checkpoint_ttl_from_tinker_path(path, 5).result()

    with pytest.raises(tinker.NotFoundError):
        other.get_training_run_by_tinker_path(path).result()
    rest.publish_checkpoint_from_tinker_path(path).result()
    assert other.get_training_run_by_tinker_path(path).result().training_run_id == trained.run
    rest.unpublish_checkpoint_from_tinker_path(path).result()

    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(path).result()


def test_copies_keep_their_kind_and_can_be_used(rest: Any, trained: Trained, sdk_environment: None) -> None:
    copies = [rest.copy_weights(each, "archive").result() for each in (trained.training, trained.sampler)]

    assert [copy.split("/")[-2] for copy in copies] == ["weights", "sampler_weights"]
    runs = rest.list_training_runs(project_id="archive").result().training_runs
    assert {each.training_run_id for each in runs} == {copy.split("/")[2] for copy in copies}
    with tinker.ServiceClient() as service:
        resumed = service.create_training_client_from_state_with_optimizer(copies[0]).result()
        assert resumed.get_info().lora_rank == 4
        sampler = service.create_sampling_client(model_path=copies[1]).result()
        assert len(sampler.compute_logprobs(tinker.ModelInput.from_ints([5, 6, 7])).result()) == 3
    for copy in copies:
        rest.delete_checkpoint_from_tinker_path(copy).result()


def test_a_session_is_moved_to_a_project(rest: Any, trained: Trained) -> None:
    rest.assign_session_project(trained.session, "night").result()

    (run,) = rest.list_training_runs(project_id="night").result().training_runs
    assert run.training_run_id == trained.run


def test_what_is_not_done_is_said_at_once(rest: Any, trained: Trained) -> None:
    admin = tinker.AdminClient()

    for call in (
        lambda: rest.export_session_trace(trained.session),
        lambda: admin.get_audit_log(),
        lambda: admin.get_billing_usage("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
    ):
        with pytest.raises(tinker.BadRequestError, match="is not supported by this server"):
            call().result()
    assert admin.get_current_checkpoint_storage_usage().result().data[0].checkpoint_count > 0


def test_an_encrypted_export_is_the_adapter_in_the_peft_layout(rest: Any, trained: Trained) -> None:
    reader = pyrage.x25519.Identity.generate()
    path = (
        trained.client.save_weights_external(
            "sealed", ttl_seconds=3600, age_encryption_recipients=[str(reader.to_public())]
        )
        .result()
        .path
    )

    given = rest.get_external_weights_urls(path).result()
    files = {}
    for name, url in given.urls.items():
        with urllib.request.urlopen(url, timeout=30) as answer:
            files[name.removesuffix(".age")] = pyrage.decrypt(answer.read(), [reader])

    assert json.loads(files["adapter_config.json"])["r"] == 4
    tensors = safetensors.load(files["adapter_model.safetensors"])
    assert tensors
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)
    with pytest.raises(tinker.RequestFailedError, match="no age recipient"):
        trained.client.save_weights_external("bad", age_encryption_recipients=["age1bad"]).result()
    rest.delete_checkpoint_from_tinker_path(path).result()


def test_the_cookbook_downloads_a_training_checkpoint(rest: Any, trained: Trained, tmp_path: Path) -> None:
    weights = pytest.importorskip("tinker_cookbook.weights")

    weights.download(tinker_path=trained.training, output_dir=str(tmp_path / "adapter"))

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    kinds = {each.checkpoint_type for each in rest.list_user_checkpoints(limit=1000).result().checkpoints}
    assert "external" not in kinds


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("run list", "training_run_id"),
        ("run info {run}", "training_run_id"),
        ("checkpoint list", "checkpoints"),
        ("checkpoint list --run-id {run}", "checkpoints"),
        ("checkpoint info {training}", "checkpoint_id"),
        ("model list", MODEL),
    ],
)
def test_the_command_line_lists_what_there_is(trained: Trained, command: str, shown: str) -> None:
    words = command.format(run=trained.run, training=trained.training).split()

    answer = cli("--format", "json", *words)

    assert answer.exit_code == 0, answer.output
    assert shown in answer.stdout
    json.loads(answer.stdout)


def test_the_command_line_changes_downloads_and_checks_the_key(trained: Trained, tmp_path: Path) -> None:
    path = trained.client.save_state("cli").result().path

    for words in (
        ["auth", "status"],
        ["checkpoint", "publish", path],
        ["checkpoint", "unpublish", path],
        ["checkpoint", "set-ttl", path, "--ttl", "7200"],
        ["checkpoint", "download", path, "--output", str(tmp_path)],
        ["checkpoint", "delete", path, "--yes"],
    ):
        answer = cli(*words)
        assert answer.exit_code == 0, (words, answer.output)
    refused = cli("session", "export-trace", trained.session)

    assert [*tmp_path.rglob("adapter_model.safetensors")]
    assert refused.exit_code != 0
    assert "is not supported by this server" in refused.exception.details


def cli(*words: str) -> Any:
    """The `tinker` command in this process: its imports are most of its time."""
    return CliRunner().invoke(import_module("tinker.cli.__main__").main_cli, [*words])
