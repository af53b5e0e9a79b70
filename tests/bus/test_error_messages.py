"""What errors say may quote anybody: it can be sent, and shown on a terminal."""

import pytest
from loractl.bus.codec import decode, encode
from loractl.bus.config import LimitsConfig
from loractl.bus.errors import InvalidData, StartFailed
from loractl.bus.failures import failed
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.messages import Envelope


@pytest.mark.parametrize("quoted", ["\ud800", "\x00", "\x1b[2J", "x" * 100_000])
def test_whatever_is_quoted_can_be_sent_and_shown(quoted: str):
    error = InvalidData(f"{quoted} is not used here")

    sent = encode(Envelope(request=RequestId("r"), tenant=TenantId("t"), body=failed(error)))

    assert decode(sent, LimitsConfig()).body == failed(error)
    assert error.message.isprintable()
    assert len(error.message) < 10_000


def test_words_of_several_lines_stay_as_they_are():
    assert StartFailed("it ended\n\twith \N{BULLET} this").message == "it ended\n\twith \N{BULLET} this"
