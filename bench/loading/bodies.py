"""Large batches all at once, as the SDK cuts and encodes them: what heartbeats and memory notice of it.

Each body is a distillation batch: for every position the teacher's best tokens with their weights.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import tinker
from tinker.proto.request_conv import forward_backward_request_to_proto

from .api import Api, connected, models, new_session
from .elsewhere import Told, elsewhere
from .heartbeats import Quickness, beating, quickness
from .service import BASE, served, watched

RUNS = 8
BODY_BYTES = 3_300_000
_SEQUENCE = 1024
_VOCABULARY = 1024
_TARGETS = 128
# Tokens are int32, targets int64, weights float32.
_POSITION_BYTES = 4 + _TARGETS * (8 + 4)


@dataclass(frozen=True)
class Bodies:
    """accepted_s, done_s: from the first byte until all were accepted, until all results had come. rss, in
    bytes: before, and at most."""

    bodies: int
    body_bytes: int
    positions: int
    alone: Quickness
    accepting: Quickness
    working: Quickness
    accepted: int
    answered: int
    in_order: bool
    accepted_s: float
    done_s: float
    rss_before: dict[str, int]
    rss_peak: dict[str, int]


def measure(*, count: int, seconds: float) -> Bodies:
    """seconds: of heartbeats alone, before."""
    with served() as service, watched(service, 0.1) as memory:

        async def whole() -> Bodies:
            async with connected(service.url, service.key) as http:
                api = Api(http)
                session = await models(api, BASE, RUNS)
                heard = await new_session(api)
                marks = [time.monotonic()]
                with beating(service.url, service.key, heard) as beats:
                    await asyncio.sleep(seconds)
                    before = memory.sizes[-1].rss
                    with elsewhere(post, service.url, service.key, session, count) as clients:
                        sizes: Sequence[int] = await clients.heard()  # the bodies are made
                        marks.append(time.monotonic())
                        accepted = await clients.heard()
                        marks.append(time.monotonic())
                        answered = await clients.heard()
                        marks.append(time.monotonic())
                # The next number of each run has its turn only when none before it is missing.
                steps = [
                    await api.done(
                        await api.post(
                            "optim_step", model_id=f"{session}:train:{run}", seq_id=_last(run, count) + 1
                        )
                    )
                    for run in range(RUNS)
                ]
            parts = [quickness(beats, *pair) for pair in pairwise(marks)]
            return Bodies(
                count,
                max(sizes),
                _positions(BODY_BYTES),
                *parts,
                accepted=accepted,
                answered=answered,
                in_order=all(step["metrics"]["applied"] == 1 for step in steps),
                accepted_s=marks[2] - marks[1],
                done_s=marks[3] - marks[1],
                rss_before=before,
                rss_peak={name: memory.peak(name) for name in service.processes},
            )

        return asyncio.run(whole())


async def post(api: Api, told: Told, session: str, count: int) -> None:
    """All bodies at once, then a poll for each."""
    draw = np.random.default_rng(0)
    bodies = [body_of(f"{session}:train:{index % RUNS}", 1 + index // RUNS, draw) for index in range(count)]
    told([len(body) for body in bodies])
    started = await asyncio.gather(*(api.send_pass(body) for body in bodies))
    told(len({each["request_id"] for each in started}))
    del bodies
    await asyncio.gather(*(api.done(each) for each in started))
    told(len(started))


def body_of(model: str, seq: int, draw: np.random.Generator, size_bytes: int = BODY_BYTES) -> bytes:
    positions = _positions(size_bytes)
    lengths = [_SEQUENCE] * (positions // _SEQUENCE) + [positions % _SEQUENCE]
    asked = tinker.types.ForwardBackwardInput(
        data=[_datum(length, draw) for length in lengths if length], loss_fn="cross_entropy"
    )
    request = tinker.types.ForwardBackwardRequest(model_id=model, seq_id=seq, forward_backward_input=asked)
    return forward_backward_request_to_proto(request).SerializeToString()


def _datum(length: int, draw: np.random.Generator) -> tinker.Datum:
    targets = draw.integers(0, _VOCABULARY, (length, _TARGETS))
    weights = draw.dirichlet(np.ones(_TARGETS), length).astype(np.float32)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(draw.integers(0, _VOCABULARY, length).tolist()),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(targets),
            "weights": tinker.TensorData.from_numpy(weights),
        },
    )


def _positions(size_bytes: int) -> int:
    return size_bytes // _POSITION_BYTES


def _last(run: int, count: int) -> int:
    return len(range(run, count, RUNS))
