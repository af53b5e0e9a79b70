"""Bodies with strings that no text can hold: refused, and the refusal can be written down."""

import pytest
from loractl.bus.errors import InvalidRequest
from loractl.tinker_bridge.answers import error_body
from loractl.tinker_bridge.routes.reading import json_object


@pytest.mark.parametrize("body", [rb'{"a": "x\ud800"}', rb'{"\uDfff": 1}', b'{"a": "\xed\xa0\x80"}'])
def test_half_a_surrogate_pair_is_refused_at_the_door(body):
    with pytest.raises(InvalidRequest, match="not Unicode text"):
        json_object(body)


@pytest.mark.parametrize("body", [rb'{"a": "\ud83d\ude00"}', '{"a": "\N{HANGUL SYLLABLE HAN}"}'.encode()])
def test_whole_pairs_and_other_text_are_taken(body):
    assert json_object(body)["a"] in ("\N{GRINNING FACE}", "\N{HANGUL SYLLABLE HAN}")


def test_an_error_that_quotes_such_a_string_can_be_sent():
    detail = error_body(InvalidRequest("there is no a\ud800"))["detail"]

    assert detail.encode() == rb"there is no a\ud800"
