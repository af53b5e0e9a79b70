"""The registry of message kinds, and the exact shape of each on the wire.

For every message class a struct is made that mirrors it with nothing left open: no unknown and no
missing field, no value of another type, no list longer than `MAX_ITEMS`. msgspec decodes straight
into it, so the nesting of hostile bytes never matters and nothing large is built before its length
has been checked. Only arrays that are `LATE` may be missing, and are where they are empty.
"""

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NewType, Union, get_args, get_origin, get_type_hints

import msgspec

from .arrays import ARRAY_HINTS, Buffer, DTypeCode, pack_array, unpack_array
from .errors import BadFrame
from .messages import LATE, Message

# Of a list or a map in a header. Large data travels as arrays, which have frames of their own.
MAX_ITEMS = 65_536

Hint = Any  # a type as annotations write it; typing has no name for these


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """One message class: names of its fields, dtype codes of its arrays, which of those are late, fields
    with dataclasses."""

    message: type[Message]
    names: tuple[str, ...]
    arrays: Mapping[str, DTypeCode]
    late: frozenset[str]
    nested: Mapping[str, Hint]
    decoder: msgspec.msgpack.Decoder[msgspec.Struct]

    def pack(self, body: Message, frames: list[Buffer]) -> object:
        """What msgpack is to encode for `body`; the bytes of its arrays are appended to `frames`."""
        if not self.arrays:
            return body
        fields = {name: getattr(body, name) for name in self.names}
        for name, code in self.arrays.items():
            if name in self.late and getattr(fields[name], "shape", None) == (0,):
                del fields[name]
            else:
                fields[name] = pack_array(fields[name], code, frames, what=f"{body.kind}.{name}")
        return fields

    def unpack(self, fields: Buffer | msgspec.Raw, frames: Sequence[Buffer]) -> Message:
        """Build the message from its packed field map and the frames its arrays lie in.

        Raises:
            BadFrame: anything is not exactly as the class says, or a frame is left over.
            msgspec.MsgspecError, UnicodeDecodeError, RecursionError: not this map at all.
        """
        mirror = self.decoder.decode(fields)
        values = {name: getattr(mirror, name) for name in self.names}
        used: set[int] = set()
        for name, code in self.arrays.items():
            if values[name] is msgspec.UNSET:
                del values[name]
            else:
                values[name] = unpack_array(values[name], code, frames, used)
        if len(used) != len(frames) - 1:
            raise BadFrame(f"{len(frames)} frames, of which {len(used) + 1} belong to the message")
        for name, hint in self.nested.items():
            values[name] = msgspec.convert(values[name], hint, from_attributes=True)
        return self.message(**values)


def schema_of(kind: str) -> Schema:
    """The schema of a kind.

    Raises:
        BadFrame: there is no such kind.
    """
    schema = _SCHEMAS.get(kind)
    if schema is None:
        raise BadFrame(f"there is no message kind {kind[:64]!r}")
    return schema


def message_classes() -> Iterator[type[Message]]:
    """Every message that has a kind, in the order of definition."""
    pending = [*Message.__subclasses__()]
    while pending:
        cls = pending.pop(0)
        pending += cls.__subclasses__()
        # dataclass(slots=True) makes a second class; only that one has __slots__.
        if "kind" in cls.__dict__ and "__slots__" in cls.__dict__:
            yield cls


def _schema(message: type[Message]) -> Schema:
    hints = {name: hint for name, hint in get_type_hints(message).items() if name != "kind"}
    return Schema(
        message=message,
        names=tuple(hints),
        arrays={name: ARRAY_HINTS[hint] for name, hint in hints.items() if _is_array(hint)},
        late=_late(message),
        nested={name: hint for name, hint in hints.items() if _holds_dataclass(hint)},
        decoder=msgspec.msgpack.Decoder(_mirror(message)),
    )


def _mirror(cls: Hint) -> type[msgspec.Struct]:
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name != "kind"}
    late = _late(cls)
    return msgspec.defstruct(
        cls.__name__,
        [_late_field(name) if name in late else (name, _mirrored(hint)) for name, hint in hints.items()],
        kw_only=True,
        forbid_unknown_fields=True,
    )


def _late(cls: Hint) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls) if field.metadata == LATE)


def _late_field(name: str) -> tuple[str, Hint, Hint]:
    return name, msgspec.msgpack.Ext | msgspec.UnsetType, msgspec.UNSET


def _mirrored(hint: Hint) -> Hint:
    """The wire's form of a field's annotation."""
    if _is_array(hint):
        return msgspec.msgpack.Ext
    if isinstance(hint, NewType):
        return _mirrored(hint.__supertype__)
    if dataclasses.is_dataclass(hint):
        return _mirror(hint)
    origin: Hint = get_origin(hint)
    inner = tuple(_mirrored(part) for part in get_args(hint))
    if origin in (Union, types.UnionType):
        return Union[inner]  # noqa: UP007  (made from a list, which `|` cannot write)
    if origin in (tuple, Mapping):
        return Annotated[origin[inner], msgspec.Meta(max_length=MAX_ITEMS)]
    return hint


def _is_array(hint: Hint) -> bool:
    try:
        return hint in ARRAY_HINTS
    except TypeError:  # an annotation that cannot be hashed is none of ours
        return False


def _holds_dataclass(hint: Hint) -> bool:
    return dataclasses.is_dataclass(hint) or any(map(_holds_dataclass, get_args(hint)))


def _registry() -> dict[str, Schema]:
    schemas: dict[str, Schema] = {}
    for cls in message_classes():
        assert cls.kind not in schemas, f"{cls.kind} names two messages"
        schemas[cls.kind] = _schema(cls)
    return schemas


_SCHEMAS = _registry()
