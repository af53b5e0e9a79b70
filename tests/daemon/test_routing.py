"""Routes: every message is a request with a destination, or something that no client may send."""

from loractl.bus import messages
from loractl.bus.schemas import message_classes
from loractl.daemon.hearing import REPORTS
from loractl.daemon.routing import DESTINATION_BY_KIND, ROLES, Destination

ANSWERS = {
    messages.Failed, messages.Waiting, messages.Done, messages.Pong, messages.Echoed, messages.DaemonStatus,
    messages.AdapterCreated, messages.LaneOpened, messages.PassResult, messages.StepResult,
    messages.CheckpointSaved, messages.StateLoaded, messages.VersionWritten, messages.Receipt,
    messages.AdapterList, messages.TenantList, messages.ModelDescribed, messages.SampleChunk, messages.SampleResult,
    messages.StateDigest, messages.VersionTable, messages.WeightsExported, messages.Recovered,
    messages.History, messages.Recalled,
}  # fmt: skip
EVENTS = {messages.AdapterPublished, messages.VersionRetired, messages.AdapterDeleted}
TO_ACTORS = {
    messages.DropVersion, messages.Drain, messages.RecoverAdapter, messages.SkipOperation,
    messages.KeepSnapshot, messages.UnloadAgain,
}  # fmt: skip


def test_every_message_is_a_routed_request_or_known_to_be_none():
    no_requests = ANSWERS | EVENTS | TO_ACTORS | set(REPORTS)

    for message in message_classes():
        assert (message.kind in DESTINATION_BY_KIND) != (message in no_requests), message.kind


def test_every_destination_that_an_actor_serves_has_roles():
    assert set(ROLES) == set(Destination) - {Destination.BROKER, Destination.TARGET}


def test_an_echo_prefers_the_trainer():
    assert ROLES[Destination.ANY] == ("trainer", "sampler")
