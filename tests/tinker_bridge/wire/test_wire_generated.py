"""The protobuf classes are what their .proto makes, and have the numbers of the SDK's own."""

import subprocess
import sys
from pathlib import Path

import pytest
from loractl.tinker_bridge.wire import tinker_pb2 as ours

ROOT = Path(__file__).resolve().parents[3]
WIRE = "tinker_bridge/wire"


def test_generating_the_classes_again_gives_the_same_bytes(tmp_path):
    pytest.importorskip("grpc_tools")

    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", f"{WIRE}/tinker.proto"], cwd=ROOT, check=True)

    for name in ("tinker_pb2.py", "tinker_pb2.pyi"):
        assert (tmp_path / WIRE / name).read_text() == (ROOT / WIRE / name).read_text()


# The SDK has a class for each kind of span, of the same fields.
_OWN_NAMES = {"Span": "SampledProvenanceSpan"}


def test_fields_have_the_numbers_and_types_of_the_sdks():
    theirs = pytest.importorskip("tinker.proto.tinker_public_pb2").DESCRIPTOR

    for name, message in ours.DESCRIPTOR.message_types_by_name.items():
        if name == "Envelope":
            continue
        original = theirs.message_types_by_name[_OWN_NAMES.get(name, name)]
        assert _fields(message) == _fields(original), name

    for name, enum in ours.DESCRIPTOR.enum_types_by_name.items():
        numbers = {value.name: value.number for value in theirs.enum_types_by_name[name].values}
        assert {value.name: value.number for value in enum.values} == numbers


def _fields(message):
    return {
        field.name: (field.number, field.type, field.is_repeated, field.has_presence)
        for field in message.fields
    }
