"""As three_users.py, told in full: a colour for each user, timestamps, errors, the history of the losses.

python examples/three_users_full.py [--steps N] [--url http://HOST:PORT --key tml-…]
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from http_client import Client, ServiceError, WorkFailed
from own_service import QUESTION, chats_of, found_service, parser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class User:
    """losses: mean per trained token, one a step. error: what went wrong, if anything did."""

    number: int
    name: str
    color: str
    rank: int
    learning_rate: float
    losses: list[float] = field(default_factory=list)
    answer: str = ""
    seconds: float = 0.0
    error: str = ""


USERS = [
    User(0, "alice", "cyan", rank=4, learning_rate=8e-3),
    User(1, "bob", "green", rank=8, learning_rate=5e-3),
    User(2, "carol", "magenta", rank=16, learning_rate=3e-3),
]


class Talk:
    """Lines as they happen, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    def say(self, user: User, text: str) -> None:
        at = time.strftime("%H:%M:%S")
        since = time.monotonic() - self._began
        self._console.print(
            f"[dim]{at} {since:6.2f} s[/]  [{user.color}]{user.name:6}[/] {escape(text)}", emoji=False
        )

    def show(self, table: Table) -> None:
        self._console.print(table)


def live_through(client: Client, user: User, steps: int, talk: Talk) -> None:
    """All that one user does. What goes wrong is told, and does not touch the other users."""
    began = time.monotonic()
    model = None
    try:
        model = client.add_lora(rank=user.rank, alpha=2.0 * user.rank, name=user.name)
        talk.say(user, f"made {model}, rank {user.rank}")
        chats = chats_of(user.number)
        for step in range(1, steps + 1):
            user.losses.append(client.train_step(model, chats, user.learning_rate))
            talk.say(user, f"step {step}/{steps}  loss {user.losses[-1]:.4f}  {history(user.losses)}")
        user.answer = client.sample([QUESTION], model, max_tokens=60, temperature=0.0)[0]
        talk.say(user, f"{QUESTION} {user.answer!r}")
    except (ServiceError, WorkFailed, TimeoutError) as error:
        user.error = str(error)
        talk.say(user, f"failed: {error}")
    finally:
        user.seconds = time.monotonic() - began
        if model is not None:
            client.remove_lora(model)


def history(losses: list[float]) -> str:
    """The losses as a row of bars."""
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    return "".join(_BARS[round((loss - low) / span * (len(_BARS) - 1))] for loss in losses)


def summary(users: list[User]) -> Table:
    table = Table(title="what became of them")
    for column in ("user", "rank", "first loss", "last loss", "history", "seconds", "answer"):
        table.add_column(column)
    for user in users:
        first, last = (f"{user.losses[i]:.3f}" if user.losses else "" for i in (0, -1))
        bars = history(user.losses) if user.losses else ""
        said = escape(user.error or user.answer)
        name = f"[{user.color}]{user.name}[/]"
        table.add_row(name, str(user.rank), first, last, bars, f"{user.seconds:.1f}", said)
    return table


def main() -> int:
    command = parser("Three users train at the same time, told in full.")
    command.add_argument("--steps", type=int, default=10)
    options = command.parse_args()
    with found_service(options) as client:
        talk = Talk()
        with ThreadPoolExecutor(len(USERS)) as pool:
            list(pool.map(lambda user: live_through(client, user, options.steps, talk), USERS))
        talk.show(summary(USERS))
    return 1 if any(user.error for user in USERS) else 0


if __name__ == "__main__":
    sys.exit(main())
