"""What a future came to, as it is kept and sent."""

from dataclasses import dataclass
from typing import Literal

import msgspec

from ..bus.errors import LoractlError, error_from_code

JSON = "application/json"
PROTOBUF = "application/x-protobuf"

# What a protobuf body is of; "" is JSON.
Form = Literal["", "pass", "sample"]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished future's answer, ready to be sent. failed: it says why the work was not done; code: of
    the error then. form: how to make JSON of it for clients that do not read protobuf."""

    body: bytes
    media_type: str = JSON
    failed: bool = False
    form: Form = ""
    code: str = ""


def error_of(result: Result) -> LoractlError:
    """What a failed result says."""
    fields: dict[str, str] = msgspec.json.decode(result.body, type=dict[str, str])
    return error_from_code(result.code, fields["error"])


def json_result(fields: object) -> Result:
    return Result(msgspec.json.encode(fields))


def failed_result(error: LoractlError) -> Result:
    return failed_text(error.message, error.fault, error.code)


def failed_text(message: str, category: str, code: str) -> Result:
    # A message may quote what no text can hold.
    fields = {"error": message.encode(errors="backslashreplace").decode(), "category": category}
    return Result(msgspec.json.encode(fields), failed=True, code=code)
