"""What a trainer answered, reduced to what must not depend on neighbours, and how two answers differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    AdapterDetails,
    CheckpointSaved,
    Failed,
    Message,
    PassResult,
    StateLoaded,
    StepResult,
    VersionWritten,
    WeightsExported,
)
from safetensors import safe_open

Value: TypeAlias = "str | float | np.ndarray"


@dataclass(frozen=True, slots=True)
class Said:
    """kind: of the message. values: what it says, arrays and all."""

    kind: str
    values: Mapping[str, Value]

    @property
    def failed(self) -> bool:
        return self.kind == Failed.kind


def said(answer: Message, layout: StateLayout) -> Said:
    """Ids, paths and words are left out, and a checkpoint is what its file holds."""
    values: Mapping[str, Value]
    match answer:
        case PassResult():
            values = {"logprobs": answer.logprobs, "loss_terms": answer.loss_terms, **answer.metrics}
        case StepResult():
            values = {name: getattr(answer, name) for name in ("applied", "step", "grad_norm", "tokens")}
        case CheckpointSaved():
            values = {"step": answer.step, **_file_of(answer, layout)}
        case StateLoaded(step=step):
            values = {"step": step}
        case WeightsExported():
            values = {"files": answer.safetensors, "config": answer.config_json, "step": answer.step}
        case VersionWritten(record=record):
            probe = np.array(record.probe_logprobs)
            values = {"digest": record.digest, "step": record.step, "probe": probe}
        case Failed(code=code):
            values = {"code": code}
        case _:
            raise AssertionError(f"nobody asked for {answer}")
    return Said(answer.kind, values)


def counters(details: AdapterDetails) -> Said:
    """What is listed of an adapter, as far as it is the adapter's own doing."""
    names = ("step", "checkpoint_step", "parameters", "state_bytes", "open_window")
    return Said("details", {name: getattr(details, name) for name in names})


def differences(one: Said, other: Said) -> list[str]:
    """How two answers differ, in words; bits count."""
    if one.kind != other.kind or one.values.keys() != other.values.keys():
        return [f"{_brief(one)} instead of {_brief(other)}"]
    found = []
    for name, value in one.values.items():
        wanted = other.values[name]
        if np.asarray(value).tobytes() != np.asarray(wanted).tobytes():
            found.append(f"{one.kind}.{name}: {_apart(value, wanted)}")
    return found


def _file_of(answer: CheckpointSaved, layout: StateLayout) -> Mapping[str, Value]:
    """Every tensor of a checkpoint, and its counters."""
    [file] = layout.checkpoint(answer.adapter, answer.name).glob("*/state.safetensors")
    with safe_open(file, framework="np") as opened:
        return {**opened.metadata(), **{name: opened.get_tensor(name) for name in opened.keys()}}  # noqa: SIM118


def _apart(value: Value, wanted: Value) -> str:
    if isinstance(value, str) or isinstance(wanted, str):
        return f"{value!r} instead of {wanted!r}"
    one, other = np.asarray(value, np.float64), np.asarray(wanted, np.float64)
    if one.shape != other.shape:
        return f"shape {one.shape} instead of {other.shape}"
    if one.ndim == 0:
        return f"{value} instead of {wanted}"
    largest = np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-30)
    return f"{int((one != other).sum())} of {one.size} numbers, by up to {largest:.1e} relative"


def _brief(answer: Said) -> str:
    return f"{answer.kind} {answer.values.get('code', '')}".strip()
