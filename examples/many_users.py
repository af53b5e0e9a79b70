"""N users make an adapter, train it, sample from it: alone one after the other, and all at once.

    python examples/many_users.py [N] [--steps N] [--rounds N] [--url http://HOST:PORT --key tml-…]

The speed-up is honest: the same users do the same work both times, each round does both, in turns, and a
first round, which is not counted, warms everything up.
"""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mean, median

from http_client import Client, ServiceError, WorkFailed
from own_service import QUESTION, chats_of, found_service, parser


@dataclass(frozen=True, slots=True)
class Outcome:
    """seconds: from making the adapter to its sample. error: empty when all went well."""

    user: int
    seconds: float
    loss: float
    error: str = ""


def one_user(client: Client, user: int, steps: int) -> Outcome:
    began = time.monotonic()
    model, loss, error = None, float("nan"), ""
    try:
        model = client.add_lora(rank=8, alpha=16, name=f"user-{user}", seed=user)
        for _ in range(steps):
            loss = client.train_step(model, chats_of(user), learning_rate=5e-3)
        client.sample([QUESTION], model, max_tokens=20, temperature=0.0)
    except (ServiceError, WorkFailed, TimeoutError) as failure:
        error = str(failure)
    seconds = time.monotonic() - began
    if model is not None:
        client.remove_lora(model)
    return Outcome(user, seconds, loss, error)


def alone(work: Callable[[int], Outcome], users: int) -> tuple[float, list[Outcome]]:
    """Each user by itself; the time is the sum of theirs."""
    outcomes = [work(user) for user in range(users)]
    return sum(outcome.seconds for outcome in outcomes), outcomes


def together(work: Callable[[int], Outcome], users: int) -> tuple[float, list[Outcome]]:
    """All at once; the time is until the last has ended."""
    began = time.monotonic()
    with ThreadPoolExecutor(users) as pool:
        outcomes = list(pool.map(work, range(users)))
    return time.monotonic() - began, outcomes


def show(title: str, seconds: float, outcomes: Sequence[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.error]
    average = mean(outcome.seconds for outcome in outcomes)
    print(
        f"{title:9} {seconds:7.2f} s   {len(outcomes) - len(failed)} succeeded, {len(failed)} failed, "
        f"{average:.2f} s a user on average"
    )
    for outcome in outcomes:
        said = outcome.error or f"loss {outcome.loss:.3f}"
        print(f"          user {outcome.user:2}  {outcome.seconds:6.2f} s  {said}")


def main() -> int:
    command = parser("Measure many users at once against one after the other.")
    command.add_argument("users", type=int, nargs="?", default=4)
    command.add_argument("--steps", type=int, default=5)
    command.add_argument("--rounds", type=int, default=2)
    options = command.parse_args()
    sums: list[float] = []
    elapsed: list[float] = []
    failed = 0
    with found_service(options) as client:

        def work(user: int) -> Outcome:
            return one_user(client, user, options.steps)

        together(work, options.users)  # the first of all find everything cold
        for number in range(1, options.rounds + 1):
            print(f"round {number} of {options.rounds}")
            for title, way, times in (("alone", alone, sums), ("together", together, elapsed)):
                seconds, outcomes = way(work, options.users)
                show(title, seconds, outcomes)
                times.append(seconds)
                failed += sum(bool(outcome.error) for outcome in outcomes)
    apart, at_once = median(sums), median(elapsed)
    print(f"{options.users} users alone, summed: {apart:.2f} s; all together: {at_once:.2f} s")
    print(f"speed-up {apart / at_once:.2f}, failures {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
