"""What a program reads of a daemon whose trainer was given up: what broker and samplers know goes on."""

from dataclasses import dataclass, field
from typing import cast

import pytest
from loractl.bus.client import Client
from loractl.bus.errors import ActorUnavailable
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.messages import (
    DaemonStatus,
    GetStatus,
    GetVersions,
    LoraSpec,
    Message,
    ModelDetails,
    VersionRecord,
    VersionTable,
)
from loractl.client.service import Service
from loractl.client.text import ModelText

PIRATE = VersionRecord(
    adapter=AdapterId("ad-1"),
    tenant=TenantId("local"),
    name="pirate",
    number=2,
    step=1,
    directory="/nowhere",
    digest="00",
    lora=LoraSpec(rank=4, alpha=8.0, seed=0),
    modules=7,
    probe_tokens=(),
    probe_logprobs=(),
)


@dataclass
class WithoutTrainer:
    """Answers as the broker does itself; nobody answers for the trainer."""

    model: ModelDetails
    records: tuple[VersionRecord, ...] = field(default=(PIRATE,))

    def request(self, body: Message) -> Message:
        match body:
            case GetVersions():
                return VersionTable(last_event=1, records=self.records)
            case GetStatus():
                return DaemonStatus(
                    daemon_version="1",
                    pid=1,
                    uptime_s=1.0,
                    state_dir="/state",
                    base_model=self.model.name,
                    http="",
                    actors=(),
                    adapters=1,
                    versions=1,
                    last_event=1,
                    model_path=self.model.path,
                )
        raise ActorUnavailable("the trainer was given up")


@pytest.fixture
def service(model_details: ModelDetails) -> Service:
    return Service(cast(Client, WithoutTrainer(model_details)))


@pytest.mark.parametrize(("name", "adapter"), [("pirate", "ad-1"), (None, None)])
def test_sampling_needs_no_trainer(
    service: Service, text: ModelText, name: str | None, adapter: str | None
) -> None:
    request = service.sample_request("Ahoy", adapter=name, raw=True)

    assert request.adapter == adapter
    assert tuple(request.prompt) == text.prompt("Ahoy", raw=True)


def test_of_what_was_never_published_only_the_trainer_knows(service: Service) -> None:
    with pytest.raises(ActorUnavailable, match="given up"):
        service.sample_request("Ahoy", adapter="poet")
