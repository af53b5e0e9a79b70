"""Many tenants through a real daemon, broker and trainer: caps, queues, names that come again, deletions."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import numpy as np
import pytest
from loractl.bus.client import Client, Pending
from loractl.bus.config import Config
from loractl.bus.errors import LoractlError
from loractl.bus.ids import TenantId
from loractl.bus.messages import (
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    CreateAdapter,
    DeleteAdapter,
    Done,
    ForwardBackward,
    ListAdapters,
    ListTenants,
    LoraSpec,
    OptimStep,
    PassResult,
    StepResult,
    TenantList,
)
from loractl.daemon import launch
from loractl.tests.trainer_actor.loop.harness import make_config, pass_over, same
from loractl.tests.trainer_actor.loop.random_model import make_model

SPEC = LoraSpec(rank=4, alpha=8.0, seed=1)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    """A daemon with four adapters and sixty queued positions, which are five passes, for each tenant."""
    root = Path(tempfile.mkdtemp(prefix="lo"))
    quotas = ("quotas.adapters=4", "quotas.queued_tokens=60", "quotas.wait_s=600")
    config = make_config(root / "s", make_model(root / "model"), "sampler.count=0", *quotas)
    launch.start_detached(config, 120.0)
    yield config
    launch.stop(config)
    shutil.rmtree(root)


class Run:
    """A client's end of an adapter of its own."""

    def __init__(self, client: Client, created: AdapterCreated) -> None:
        self.client = client
        self.details = created.details
        self.lane = created.lane

    def forward_backward(self, seq: int) -> ForwardBackward:
        return pass_over(seq, adapter=self.details.adapter, lane=self.lane, seq=seq)

    def step(self, seq: int) -> OptimStep:
        return OptimStep(adapter=self.details.adapter, lane=self.lane, seq=seq, learning_rate=0.05)

    def operation(self, seq: int) -> ForwardBackward | OptimStep:
        return self.step(seq) if seq % 4 == 0 else self.forward_backward(seq)

    def described(self) -> AdapterDetails:
        listed = self.client.request(ListAdapters(name=self.details.name), timeout_s=PATIENCE_S)
        assert isinstance(listed, AdapterList)
        return listed.adapters[0]

    def delete(self) -> None:
        assert (
            self.client.request(DeleteAdapter(adapter=self.details.adapter), timeout_s=PATIENCE_S) == Done()
        )


def creation(client: Client, name: str) -> Pending:
    return client.submit(CreateAdapter(name=name, lora=SPEC))


def created(client: Client, pending: Pending) -> Run:
    answer = pending.result(PATIENCE_S)
    assert isinstance(answer, AdapterCreated)
    return Run(client, answer)


def outcome(pending: Pending) -> str:
    """The code of a failure, or the kind of the answer."""
    try:
        return pending.result(PATIENCE_S).kind
    except LoractlError as error:
        return error.code


def test_b3_14_eight_first_creations_of_eight_clients_all_succeed(config: Config):
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(config, TenantId(f"first-{n}"))) for n in range(8)]
        pending = [creation(client, "poet") for client in clients]

        runs = [created(client, each) for client, each in zip(clients, pending, strict=True)]

        assert len({run.details.adapter for run in runs}) == 8
        for run in runs:
            run.delete()


def test_b3_14_of_eight_creations_of_one_name_exactly_one_succeeds(config: Config):
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(config, TenantId("one"))) for _ in range(8)]

        outcomes = [outcome(each) for each in [creation(client, "poet") for client in clients]]

        assert sorted(outcomes) == ["adapter_created", *["adapter_exists"] * 7]


def test_b3_12_of_eight_creations_at_a_cap_of_four_exactly_four_succeed_and_deletions_let_others_in(
    config: Config,
):
    reasons: list[str] = []
    with Client(config, TenantId("many"), on_waiting=reasons.append) as client:
        pending = [creation(client, f"poet-{number}") for number in range(8)]

        runs = [created(client, each) for each in pending[:4]]

        listed = client.request(ListAdapters(), timeout_s=PATIENCE_S)
        assert isinstance(listed, AdapterList)
        assert len(listed.adapters) == 4
        assert len(reasons) == 4
        assert "has 4 of at most 4 adapters" in reasons[0]
        for number in range(4):
            runs[number].delete()
            assert created(client, pending[4 + number]).details.name == f"poet-{4 + number}"


def test_passes_beyond_the_queue_wait_are_told_and_end_as_if_they_had_not(config: Config):
    reasons: list[str] = []
    count = 40
    with Client(config, TenantId("deep"), on_waiting=reasons.append) as client:
        calm, hasty = (created(client, creation(client, name)) for name in ("calm", "hasty"))
        expected = [client.request(calm.operation(seq), timeout_s=PATIENCE_S) for seq in range(1, count + 1)]
        assert not [reason for reason in reasons if "queued positions" in reason]

        # As the SDK does it: everything at once, and not quite in order.
        draw = Random(0)
        order = sorted(range(1, count + 1), key=lambda seq: seq + draw.random() * 6)
        pending = {seq: client.submit(hasty.operation(seq)) for seq in order}
        answers = [pending[seq].result(PATIENCE_S) for seq in range(1, count + 1)]

        assert [reason for reason in reasons if "queued positions of this tenant are taken" in reason]
        assert same(logprobs(answers), logprobs(expected))
        assert [a for a in answers if isinstance(a, StepResult)] == [
            e for e in expected if isinstance(e, StepResult)
        ]


def logprobs(answers: list[object]) -> list[np.ndarray]:
    return [answer.logprobs for answer in answers if isinstance(answer, PassResult)]


def test_deleting_an_adapter_of_which_the_broker_holds_passes_frees_everybody(config: Config):
    with Client(config, TenantId("deleter")) as client:
        doomed, other = (created(client, creation(client, name)) for name in ("doomed", "other"))
        held = [client.submit(doomed.operation(seq)) for seq in range(1, 60)]
        behind = [client.submit(other.operation(seq)) for seq in range(1, 5)]

        doomed.delete()

        assert {outcome(each) for each in held} <= {
            "pass_result",
            "step_result",
            "aborted",
            "adapter_not_found",
        }
        assert [outcome(each) for each in behind] == [*["pass_result"] * 3, "step_result"]
        assert other.described().step == 1
        assert outcome(client.submit(doomed.operation(60))) == "adapter_not_found"


def test_b3_19_a_name_that_comes_again_is_another_adapter_for_everyone_who_still_sends(config: Config):
    with Client(config, TenantId("again")) as client, Client(config, TenantId("again")) as stale:
        first = created(client, creation(client, "poet"))
        assert outcome(client.submit(first.forward_backward(1))) == "pass_result"
        under_way = [stale.submit(first.operation(seq)) for seq in range(2, 30)]
        first.delete()

        second = created(client, creation(client, "poet"))

        late = [stale.submit(first.operation(seq)) for seq in range(30, 34)]
        assert second.details.adapter != first.details.adapter
        assert {outcome(each) for each in under_way} <= {
            "pass_result",
            "step_result",
            "aborted",
            "adapter_not_found",
        }
        assert {outcome(each) for each in late} == {"adapter_not_found"}
        # Nothing of the first one reached the second.
        assert second.described().usage.tokens == 0
        step = client.request(second.step(1), timeout_s=PATIENCE_S)
        assert isinstance(step, StepResult)
        assert (step.applied, step.step, step.tokens) == (False, 0, 0)


def test_usage_is_told_per_adapter_and_per_tenant(config: Config):
    with Client(config, TenantId("counted")) as client:
        run = created(client, creation(client, "poet"))
        for seq in range(1, 5):
            client.request(run.operation(seq), timeout_s=PATIENCE_S)

        listed = client.request(ListAdapters(), timeout_s=PATIENCE_S)

        assert isinstance(listed, AdapterList)
        (found,) = listed.adapters
        assert (found.usage.tokens, found.usage.operations, found.usage.steps) == (36, 4, 1)
        assert listed.usage == found.usage
        assert (found.phase, found.place, found.open_window) == ("registered", "device", False)


def test_the_daemons_owner_reads_all_tenants_sums_and_a_tenant_only_its_own(config: Config):
    with Client(config, TenantId("seen")) as client, Client(config) as owner:
        run = created(client, creation(client, "poet"))
        client.request(run.operation(1), timeout_s=PATIENCE_S)

        told = owner.request(ListTenants(), timeout_s=PATIENCE_S)
        listed = owner.submit(ListAdapters(), tenant=TenantId("seen")).result(PATIENCE_S)

        assert isinstance(told, TenantList)
        assert isinstance(listed, AdapterList)
        found = next(each for each in told.tenants if each.tenant == "seen")
        assert (found.adapters, found.usage) == (1, listed.usage)
        assert [each.name for each in listed.adapters] == ["poet"]
        assert outcome(client.submit(ListTenants())) == "access_denied"
