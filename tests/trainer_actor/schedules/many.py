"""`make schedules`: many schedules, each drawn from a seed of its own; which of them differ, and how.

    python many.py [--count 10000] [--seed N]

With --seed, the one schedule of that seed, told in full. The last line reads `N schedules, M differing`
and the exit status is 1 if M is above 0.
"""

import argparse
import logging
import random
import secrets
import sys

import structlog
import torch
from loractl.bus.errors import LoractlError
from loractl.bus.messages import Usage
from loractl.tests.trainer_actor.schedules.schedule import Schedule, draw_schedule
from loractl.tests.trainer_actor.schedules.theatre import Theatre, pool, shared_part, theatre
from loractl.tests.trainer_actor.schedules.trainers import VARIANTS

# Lives are drawn anew after so many seeds, because each is also run alone.
_SEEDS_PER_POOL = 1000


def schedule_of(seed: int) -> tuple[str, Schedule]:
    """The variant and the schedule of a seed."""
    source = random.Random(seed)
    variant = source.choice(tuple(VARIANTS))
    return variant, draw_schedule(source.randrange, pool(seed // _SEEDS_PER_POOL))


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if arguments.seed is not None:
        _describe(*schedule_of(arguments.seed))
        seeds = range(arguments.seed, arguments.seed + 1)
    else:
        first = secrets.randbelow(10**6) * _SEEDS_PER_POOL
        seeds = range(first, first + arguments.count)
    differing = _play(seeds)
    print(f"{len(seeds)} schedules, {differing} differing")
    return 1 if differing else 0


def _play(seeds: range) -> int:
    """Play the schedules of these seeds and tell which differ. Returns how many do."""
    differing = 0
    played: dict[str, list[Usage]] = {}
    with theatre(layers=2) as stages:
        for seed in seeds:
            variant, schedule = schedule_of(seed)
            found = _differences(stages, variant, schedule, played.setdefault(variant, []))
            if found:
                differing += 1
                print(f"seed {seed} ({variant}) differs:", *found, sep="\n  ", flush=True)
            if (seed - seeds.start) % 1000 == 999:
                print(f"seeds {seeds.start} to {seed} played, {differing} differing", flush=True)
    for variant, usage in played.items():
        passes = sum(each.passes for each in usage)
        print(f"{variant:28}{passes:8} passes, counted for each adapter,{shared_part(usage):5.0%} shared")
    return differing


def _differences(stages: Theatre, variant: str, schedule: Schedule, usage: list[Usage]) -> list[str]:
    try:
        outcome = stages.play(variant, schedule)
    except (AssertionError, LoractlError) as error:  # a trainer that broke; the next schedule gets another
        return [f"{type(error).__name__}: {error}"]
    usage += outcome.usage
    return outcome.differences


def _describe(variant: str, schedule: Schedule) -> None:
    print(variant, *VARIANTS[variant], sep="\n  ")
    for track in schedule.tracks:
        print(f"{track.name} of {track.tenant}{', deleted while it runs' if track.rude else ''}")
        for life in track.lives:
            print(f"  {life.lora}", *life.ops, sep="\n    ")
    print("moves", *schedule.moves, sep="\n  ")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
