"""What is asked of every error that leaves: it can be sent, it is short, it is one line."""

from loractl.bus.errors import LoractlError

_LONGEST = 8001


def check_told(error: LoractlError, *, longest: int = _LONGEST) -> None:
    text = error.message
    text.encode()  # half a surrogate pair could not be sent
    assert len(text) <= longest, f"a message of {len(text)} characters: {text[:300]}"
    assert "\x00" not in text, text
