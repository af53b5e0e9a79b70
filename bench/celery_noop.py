"""Celery with Redis, doing nothing, for `journal.py`: the task, and the clients that ask for it.

Runs in a virtual environment of its own, without loractl. `celery -A celery_noop worker` is the worker; as a
program it reads a line `CLIENTS REQUESTS` at a time and answers with a line of JSON: seconds of each request.
The worker acknowledges a task when it is done (acks_late), so that one that dies loses none.
"""

import json
import os
import sys
import threading
import time

from celery import Celery

URL = os.environ["CELERY_NOOP_URL"]
PAYLOAD = "x" * 200  # an OptimStep's size
PATIENCE_S = 60

app = Celery("celery_noop", broker=URL, backend=URL)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=16, result_expires=600)


@app.task(name="noop")
def noop(payload: str) -> str:
    return payload


def ask(requests: int, took_s: list[float]) -> None:
    for _ in range(requests):
        began = time.perf_counter()
        noop.delay(PAYLOAD).get(timeout=PATIENCE_S)
        took_s.append(time.perf_counter() - began)


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        clients, requests = map(int, line.split())
        took_s: list[float] = []
        threads = [threading.Thread(target=ask, args=(requests // clients, took_s)) for _ in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps({"s": time.perf_counter() - began, "took_s": took_s}), flush=True)


if __name__ == "__main__":
    main()
