"""A long day in short: tenants train, save, sample, delete, begin and end sessions; what grows meanwhile.

What the service keeps on purpose (results, outcomes, history) has small bounds here, so that they are reached
before the second half, of which the growth is told.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

from .api import Api, connected, new_session
from .bodies import body_of
from .elsewhere import Told, elsewhere
from .heartbeats import Quickness, beating, quickness
from .service import BASE, Service, Sizes, served, watched

EVERY_S = 10.0
TENANTS = 4
# How often each of them begins a session, where the machine keeps up.
_SESSION_EVERY_S = 4.0
# Of its middle; less may be chance, such as where a process's allocator finds room.
FLAT = 0.02
_STEPS = 4
_BODY_BYTES = 40_000
_BOUNDS = (
    "bridge.result_s=30",
    "bridge.result_bytes=8388608",
    "limits.outcome_s=30",
    "limits.outcome_bytes=8388608",
    "journal.keep_s=30",
    "journal.keep_bytes=67108864",
    "journal.snapshot_s=10",
    "bridge.ephemeral_samplers=2",
)


@dataclass(frozen=True)
class Growth:
    """Of the second half: first, last and largest value in bytes, and the slope of the line that fits."""

    first: int
    last: int
    most: int
    bytes_per_hour: float
    flat: bool


@dataclass(frozen=True)
class Soak:
    """sessions: lived through, each with its training run, checkpoints and samples. failed: why, of those
    that were not."""

    minutes: float
    sessions: int
    failed: tuple[str, ...]
    heartbeats: Quickness
    growth: dict[str, Growth]


def measure(minutes: float) -> Soak:
    with served(*_BOUNDS, samplers=1) as service:
        every_s = min(EVERY_S, minutes * 60 / 24)
        with watched(service, every_s, state=True) as memory:
            sessions, failed, heard = asyncio.run(_lived(service, minutes * 60))
        return Soak(minutes, sessions, tuple(failed), heard, growth_of(memory.sizes))


async def _lived(service: Service, seconds: float) -> tuple[int, list[str], Quickness]:
    async with connected(service.url, service.key) as http:
        session = await new_session(Api(http))
        with (
            beating(service.url, service.key, session) as beats,
            elsewhere(live, service.url, service.key, seconds) as tenants,
        ):
            sessions, failed = await tenants.heard()
    return sessions, failed, quickness(beats)


async def live(api: Api, told: Told, seconds: float) -> None:
    """Tenants that begin a session when the one before has ended, until the time is over."""
    until = time.monotonic() + seconds
    failed: list[str] = []

    async def tenant(number: int) -> int:
        draw = np.random.default_rng(number)
        lived = 0
        while (begun_s := time.monotonic()) < until:
            try:
                await one_session(api, draw)
                lived += 1
            except (RuntimeError, aiohttp.ClientError) as error:
                failed.append(str(error)[:200])
            await asyncio.sleep(begun_s + _SESSION_EVERY_S - time.monotonic())
        return lived

    told((sum(await asyncio.gather(*(tenant(number) for number in range(TENANTS)))), failed))


async def one_session(api: Api, draw: np.random.Generator) -> None:
    session = await new_session(api)
    lora = {"rank": 8, "seed": int(draw.integers(2**31))}
    made = await api.post(
        "create_model", session_id=session, model_seq_id=0, base_model=BASE, lora_config=lora
    )
    model = (await api.done(made))["model_id"]
    seq = 0
    for _ in range(_STEPS):
        passed = await api.send_pass(body_of(model, seq + 1, draw, _BODY_BYTES))
        stepped = await api.post("optim_step", model_id=model, seq_id=seq + 2)
        await asyncio.gather(api.done(passed), api.done(stepped))
        seq += 2
    for path in ("first", "second"):
        seq += 1
        await api.done(await api.post("save_weights", model_id=model, seq_id=seq, path=path))
    await _sampled(api, session, model, seq + 1, draw)
    for path in ("weights/first", "weights/second", "sampler_weights/drawn"):
        await api.delete(f"training_runs/{model}/checkpoints/{path}")
    await api.post(f"sessions/{session}/finish", reason={"type": "success"})


async def _sampled(api: Api, session: str, model: str, seq: int, draw: np.random.Generator) -> None:
    saved = await api.done(
        await api.post("save_weights_for_sampler", model_id=model, seq_id=seq, path="drawn")
    )
    opened = await api.post(
        "create_sampling_session", session_id=session, sampling_session_seq_id=0, model_path=saved["path"]
    )
    prompt = {"chunks": [{"type": "encoded_text", "tokens": draw.integers(0, 1000, 12).tolist()}]}
    samples = [
        await api.post(
            "asample",
            sampling_session_id=opened["sampling_session_id"],
            seq_id=number,
            num_samples=2,
            prompt=prompt,
            sampling_params={"max_tokens": 8},
        )
        for number in range(4)
    ]
    await asyncio.gather(*(api.done(each) for each in samples))


# --- what grew -----------------------------------------------------------------------------------


def growth_of(sizes: Sequence[Sizes]) -> dict[str, Growth]:
    half = sizes[len(sizes) // 2 :]
    at_s = [each.at_s for each in half]
    grown = {name: _growth(at_s, [each.rss[name] for each in half]) for name in half[0].rss}
    return grown | {"state directory": _growth(at_s, [each.state for each in half])}


def _growth(at_s: Sequence[float], values: Sequence[int]) -> Growth:
    per_s = float(np.polyfit(at_s, values, 1)[0])
    grown = per_s * (at_s[-1] - at_s[0])
    return Growth(values[0], values[-1], max(values), 3600 * per_s, grown <= FLAT * float(np.median(values)))
