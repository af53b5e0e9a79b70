"""A trainer without weights: it answers every operation at once, with figures that count its requests.

A pass whose loss_config says `hang` is noted as in hand, and never ends. One that says `dies_again` is noted, too,
and ends the process if it runs again after a restart. One that says `wait` is answered once the file `<state>/../go`
is there, with so many positions as `positions` says; `<state>/../has` says that it came.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
from loractl.bus.actor_link import ActorLink
from loractl.bus.config import Config, config_from_json
from loractl.bus.ids import AdapterId
from loractl.bus.in_hand import SLOTS, Note, encode_note
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    AdapterCreated,
    AdapterDetails,
    CreateAdapter,
    Done,
    Drain,
    Envelope,
    ForwardBackward,
    LoraSpec,
    Message,
    OptimStep,
    PassResult,
    RecoverAdapter,
    Recovered,
    StepResult,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--actor")
    options = parser.parse_args()
    config = config_from_json(options.config.read_text())
    outside = Path(config.state_dir).parent
    kept: list[Envelope] = []
    brought_back: set[AdapterId] = set()
    steps = 0
    with ActorLink(config, options.actor, "trainer") as link:
        link.ready("steps")
        while True:
            for envelope in link.receive(0.02):
                if isinstance(envelope.body, Drain):
                    return
                if isinstance(envelope.body, ForwardBackward) and "hang" in envelope.body.loss_config:
                    take_in_hand(config, envelope)
                    link.turn("a pass that never ends")
                    time.sleep(3600)
                if isinstance(envelope.body, ForwardBackward) and "wait" in envelope.body.loss_config:
                    (outside / "has").touch()
                    kept.append(envelope)
                    continue
                if isinstance(envelope.body, RecoverAdapter):
                    brought_back.add(envelope.body.adapter)
                if is_deadly(envelope.body, brought_back):
                    take_in_hand(config, envelope)
                    os._exit(1)
                steps += isinstance(envelope.body, OptimStep)
                link.reply(envelope, answer(envelope, steps))
            if kept and (outside / "go").exists():
                for envelope in kept:
                    link.reply(envelope, answer(envelope, steps))
                kept.clear()


def take_in_hand(config: Config, envelope: Envelope) -> None:
    note = Note(in_hand=((envelope.tenant, envelope.request),))
    StateLayout(Path(config.state_dir)).in_hand.write_bytes(encode_note(SLOTS, note))  # the first slot


def is_deadly(body: Message, brought_back: set[AdapterId]) -> bool:
    return (
        isinstance(body, ForwardBackward)
        and "dies_again" in body.loss_config
        and body.adapter in brought_back
    )


def answer(envelope: Envelope, steps: int) -> Message:
    match envelope.body:
        case CreateAdapter(adapter=adapter, lane=lane, name=name, lora=lora):
            return AdapterCreated(details=details(adapter, envelope, name, lora), lane=lane)
        case RecoverAdapter():
            return Recovered(step=0)
        case OptimStep():
            return StepResult(applied=True, step=steps, grad_norm=0.0, learning_rate=0.1, tokens=0)
        case ForwardBackward(loss_config=said):
            zeros = np.zeros(int(said.get("positions", 1)), np.float32)
            return PassResult(logprobs=zeros, loss_terms=zeros, metrics={"loss:sum": 0.0})
        case _:
            return Done()


def details(adapter: AdapterId, envelope: Envelope, name: str, lora: LoraSpec) -> AdapterDetails:
    return AdapterDetails(
        adapter=adapter,
        tenant=envelope.tenant,
        name=name,
        lora=lora,
        step=0,
        version=0,
        checkpoint_step=-1,
        parameters=10,
        state_bytes=40,
        created_unix_s=0.0,
    )


if __name__ == "__main__":
    sys.exit(main())
