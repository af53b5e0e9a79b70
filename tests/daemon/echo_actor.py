"""A real actor for the daemon's tests: an `ActorLink`, and as its work whatever an echo's text says.

`python echo_actor.py --config FILE --actor NAME [--role ROLE] [--never-ready] [--fail-after-first FILE]
[--exit CODE] [--ignore-drain] [--survive-the-daemon]`
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from loractl.bus.actor_link import ActorLink
from loractl.bus.config import config_from_json
from loractl.bus.heartbeat import end_own_group
from loractl.bus.messages import Drain, Echo, Echoed, Envelope


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--actor")
    parser.add_argument("--role", default="trainer")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--fail-after-first", type=Path)
    parser.add_argument("--exit", type=int)
    parser.add_argument("--ignore-drain", action="store_true")
    parser.add_argument("--survive-the-daemon", action="store_true")
    options = parser.parse_args()
    print(f"{options.actor} lives as {os.getpid()}")
    if options.exit is not None:
        print("the base model is not there")
        return options.exit
    if options.fail_after_first is not None:
        if options.fail_after_first.exists():
            return 1
        options.fail_after_first.touch()
    config = config_from_json(options.config.read_text())
    orphaned = (lambda: None) if options.survive_the_daemon else end_own_group
    with ActorLink(config, options.actor, options.role, on_orphaned=orphaned) as link:
        if not options.never_ready:
            link.ready("echoes")
        return serve(link, ignore_drain=options.ignore_drain)


def serve(link: ActorLink, *, ignore_drain: bool) -> int:
    kept: list[Envelope] = []
    while True:
        for envelope in link.receive(0.2):
            if isinstance(envelope.body, Drain) and not ignore_drain:
                for waiting in kept:
                    link.reply(waiting, echoed("drained"))
                return 0
            if isinstance(envelope.body, Echo):
                text = envelope.body.payload.tobytes().decode(errors="replace")
                if text == "keep":
                    kept.append(envelope)
                elif text == "answer and die":
                    link.reply(envelope, echoed("last words"))
                    link.close()
                    os._exit(1)
                elif text in _DEEDS:
                    link.reply(envelope, echoed(_DEEDS[text](link)))
                else:
                    link.reply(envelope, Echoed(payload=envelope.body.payload))


def echoed(text: str) -> Echoed:
    return Echoed(payload=np.frombuffer(text.encode(), dtype=np.uint8))


def _start_a_child(_link: ActorLink) -> str:
    """One that would live for long, as an engine's core does."""
    command = [sys.executable, "-c", "import signal; signal.signal(15, lambda *_: None); signal.pause()"]
    return str(subprocess.Popen(command).pid)


def _hang(_link: ActorLink) -> str:
    os.kill(os.getpid(), signal.SIGSTOP)
    return "awake"


def _die(_link: ActorLink) -> str:
    os._exit(1)


def _stand_still(_link: ActorLink) -> str:
    """The heartbeat's thread goes on meanwhile."""
    time.sleep(3600)
    return "awake"


def _work_slowly(link: ActorLink) -> str:
    for _ in range(30):
        time.sleep(0.1)
        link.turn("slow work")
    return "done"


_DEEDS: Mapping[str, Callable[[ActorLink], str]] = {
    "pid": lambda _link: str(os.getpid()),
    "start a child": _start_a_child,
    "hang": _hang,
    "stand still": _stand_still,
    "work slowly": _work_slowly,
    "die": _die,
}

if __name__ == "__main__":
    sys.exit(main())
