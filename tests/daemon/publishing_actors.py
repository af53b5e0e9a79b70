"""A trainer that writes versions without weights, and a sampler that follows the events: both real actors."""

import argparse
import asyncio
import sys
from pathlib import Path

import numpy as np
from loractl.bus.actor_link import ActorLink
from loractl.bus.async_actor_link import AsyncActorLink
from loractl.bus.config import Config, config_from_json
from loractl.bus.messages import (
    AdapterDeleted,
    AdapterPublished,
    DeleteAdapter,
    Done,
    Drain,
    DropVersion,
    LoraSpec,
    PublishAdapter,
    Sample,
    SampleResult,
    VersionRecord,
    VersionReleased,
    VersionRetired,
    VersionServed,
    VersionTable,
    VersionWritten,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--actor")
    options = parser.parse_args()
    config = config_from_json(options.config.read_text())
    if options.actor == "trainer":
        train(config)
    else:
        asyncio.run(sample(config, options.actor))


def train(config: Config) -> None:
    """Each version is an empty file `<state>/versions/<adapter>/<number>`."""
    root = Path(config.state_dir) / "versions"
    with ActorLink(config, "trainer", "trainer") as link:
        found = sorted(root.glob("*/*"))
        link.ready("writes", versions=[record(path) for path in found], adapters=1)
        while True:
            for envelope in link.receive(0.2):
                match envelope.body:
                    case PublishAdapter(adapter=adapter):
                        numbers = [int(path.name) for path in (root / adapter).glob("*")]
                        path = root / adapter / str(max(numbers, default=0) + 1)
                        path.parent.mkdir(exist_ok=True)
                        path.touch()
                        link.reply(envelope, VersionWritten(record=record(path)))
                    case DropVersion(adapter=adapter, version=number):
                        (root / adapter / str(number)).unlink(missing_ok=True)
                    case DeleteAdapter():
                        link.reply(envelope, Done())
                    case Drain():
                        return


def record(path: Path) -> VersionRecord:
    return VersionRecord(
        adapter=path.parent.name,
        tenant="local",
        name="pirate",
        number=int(path.name),
        step=1,
        directory=str(path),
        digest="00",
        lora=LoraSpec(rank=4, alpha=8.0, seed=0),
        modules=7,
        probe_tokens=(1, 2),
        probe_logprobs=(-1.0,),
    )


async def sample(config: Config, actor: str) -> None:
    async with AsyncActorLink(config, actor, "sampler") as link:
        following = asyncio.create_task(follow(link, actor))
        link.ready("samples")
        while True:
            for envelope in await link.receive(0.2):
                match envelope.body:
                    case Sample(version=version, prompt=prompt):
                        link.reply(envelope, result(version or 0, prompt))
                    case Drain():
                        following.cancel()
                        return


async def follow(link: AsyncActorLink, actor: str) -> None:
    held: set[tuple[str, int]] = set()
    async for news in link.events():
        match news:
            case VersionTable(records=records):
                now = {(r.adapter, r.number) for r in records}
                added, gone = now - held, held - now
            case AdapterPublished(record=one):
                added, gone = {(one.adapter, one.number)}, set()
            case VersionRetired(adapter=adapter, version=number):
                added, gone = set(), {(adapter, number)}
            case AdapterDeleted(adapter=adapter):
                added, gone = set(), {key for key in held if key[0] == adapter}
        held = (held | added) - gone
        for adapter, number in sorted(added):
            link.report(
                VersionServed(
                    actor=actor,
                    adapter=adapter,
                    version=number,
                    engine="torch",
                    engine_reason="a test",
                    modules_bound=7,
                    probe_max_abs_diff=0.0,
                )
            )
        for adapter, number in sorted(gone):
            link.report(VersionReleased(actor=actor, adapter=adapter, version=number))


def result(version: int, prompt: np.ndarray) -> SampleResult:
    floats = np.zeros(len(prompt), dtype=np.float32)
    return SampleResult(
        version=version,
        engine="torch",
        lengths=np.array([len(prompt)], dtype=np.int64),
        tokens=prompt,
        logprobs=floats,
        texts=("",),
        stop_reasons=("stop",),
        prompt_logprobs=floats[:0],
    )


if __name__ == "__main__":
    sys.exit(main())
