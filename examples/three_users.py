"""Three users train an adapter each at the same time on one base model, then sample from it.

python examples/three_users.py [--url http://HOST:PORT --key tml-…]
"""

from concurrent.futures import ThreadPoolExecutor

from http_client import Client
from own_service import QUESTION, chats_of, found_service, parser

USERS = ("alice", "bob", "carol")
STEPS = 3


def train_and_sample(client: Client, number: int) -> str:
    name = USERS[number]
    model = client.add_lora(rank=8, alpha=16, name=name)
    chats = chats_of(number)
    for step in range(1, STEPS + 1):
        loss = client.train_step(model, chats, learning_rate=5e-3)
        print(f"{name:6} step {step}: loss {loss:.3f}", flush=True)
    text = client.sample([QUESTION], model, max_tokens=40, temperature=0.0)[0]
    client.remove_lora(model)
    return f"{name:6} {QUESTION} {text!r}"


def main() -> None:
    options = parser("Three users train at the same time.").parse_args()
    with found_service(options) as client, ThreadPoolExecutor(len(USERS)) as pool:
        for said in pool.map(lambda number: train_and_sample(client, number), range(len(USERS))):
            print(said)


if __name__ == "__main__":
    main()
