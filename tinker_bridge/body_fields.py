"""What fields of JSON bodies may hold: the bounds that every body shares."""

import json
from collections.abc import Iterable, Sized
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator

_MOST_FIELDS = 256
_MOST_LEVELS = 32
_MOST_METADATA_BYTES = 64 * 2**10
# Each takes some hundred bytes of memory, however few it was sent in.
_MOST_METADATA_VALUES = 4096


def _modest(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata is kept, listed and searched: it must not be what makes that hard."""
    inner: list[Any] = [metadata]
    values = 0
    for _ in range(_MOST_LEVELS):
        inner = [part for each in inner for part in _parts(each)]
        values += len(inner)
    if inner:
        raise ValueError(f"nested deeper than {_MOST_LEVELS} levels")
    if values > _MOST_METADATA_VALUES:
        raise ValueError(f"of {values} values: at most {_MOST_METADATA_VALUES} are taken")
    if len(json.dumps(metadata)) > _MOST_METADATA_BYTES:
        raise ValueError(f"larger than {_MOST_METADATA_BYTES} bytes")
    return metadata


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


# What users attach: any JSON, within bounds.
Metadata = Annotated[dict[str, Any], AfterValidator(_modest)]


# Kept, listed and searched, too.
Word = Annotated[str, Field(max_length=256)]
Title = Annotated[str, Field(max_length=1024)]
_MOST_DETAIL = 4096
# Said at a session's end, perhaps a whole traceback: its end is taken all the same.
Detail = Annotated[str, AfterValidator(lambda text: text[:_MOST_DETAIL])]

T = TypeVar("T")


def _few(value: object) -> object:
    """Looked at before anything in it: each entry that is wrong would be an error, and all are gathered."""
    if isinstance(value, Sized) and len(value) > _MOST_FIELDS:
        raise ValueError(f"has {len(value)} entries: at most {_MOST_FIELDS} are taken")
    return value


class FirstWrong(FailFast):
    """The first wrong entry ends a list: errors on a million would take a gigabyte. Hashable, for `| None`."""

    __hash__ = object.__hash__


# What a body may hold many of.
Few = Annotated[list[T], FirstWrong(), Field(max_length=_MOST_FIELDS)]
Many = Annotated[list[T], FirstWrong(), Field(max_length=2**16)]
Fields = Annotated[dict[str, T], BeforeValidator(_few), Field(max_length=_MOST_FIELDS)]
Texts = Annotated[Fields[str], AfterValidator(_modest)]
# What SQLite holds, and messages.
Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[int, Field(ge=0, lt=2**63)]


class Body(BaseModel):
    """Fields may begin with `model_`, as Tinker's do; numbers must be finite. Lists and dicts have bounds."""

    model_config = ConfigDict(protected_namespaces=(), extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, data: object) -> object:
        return _few(data) if isinstance(data, dict) else data
