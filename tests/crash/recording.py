"""A proxy between the SDK and the bridge that writes down what clients were told, and what they read.

It is a load balancer as one stands before any service: a connection that nobody takes is tried again for a
moment, and one that breaks while an answer is on its way breaks for the client, too.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_NOT_RELAYED = {"connection", "content-length", "transfer-encoding", "host", "content-encoding"}
# The SDK takes another number whenever it sends the same save again.
_CHANGING = re.compile(rb'"sampling_session_seq_id":\s*\d+')
_SAVE = "/api/v1/save_weights_for_sampler"
# What is answered at once, and where it is to be found then, by the name of its id in the answer.
_MADE = {
    "session_id": ("/api/v1/create_session", "/api/v1/sessions/"),
    "sampling_session_id": ("/api/v1/create_sampling_session", "/api/v1/samplers/"),
}
_TAKES_S = 3.0
_LOOK_AGAIN_S = 0.05
POLL = "/api/v1/retrieve_future"


@dataclass
class Told:
    """A future that a client was told. outcome: what it read first, as it came; None while it has not.
    changed: it read something else later."""

    key: str
    path: str
    outcome: bytes | None = None
    changed: bool = False


@dataclass
class Record:
    """told: by future id. made: what was answered at once, by where it is to be found, and whose it is. deleted:
    how many deletions were told. twice: requests that came again and were told another id."""

    told: dict[str, Told] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    deleted: int = 0
    twice: list[str] = field(default_factory=list)
    finals: int = 0
    _ids: dict[bytes, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def acknowledged(self) -> int:
        return len(self.told) + len(self.made) + self.deleted

    def heard(self, key: str, method: str, path: str, body: bytes, answer: httpx.Response) -> None:
        """An answer that the service gave in full."""
        if answer.status_code != 200:
            return
        with self._lock:
            if path == POLL:
                self._read(json.loads(body)["request_id"], answer)
            elif method == "DELETE":
                self.deleted += 1
            elif answer.headers.get("content-type", "").startswith("application/json"):
                self._acknowledged(key, path, body, answer)

    def _acknowledged(self, key: str, path: str, body: bytes, answer: httpx.Response) -> None:
        fields = answer.json()
        if not isinstance(fields, dict):
            return
        if future := fields.get("request_id"):
            self._once(key, path, _CHANGING.sub(b"", body) if path == _SAVE else body, future)
            self.told.setdefault(future, Told(key, path))
        for name, (made_by, there) in _MADE.items():
            if path == made_by:
                self.made[there + fields[name]] = key
                if name != "session_id":  # which has no number: asked for again it is another one
                    self._once(key, path, body, fields[name])

    def _once(self, key: str, path: str, body: bytes, told: str) -> None:
        request = hashlib.sha256(b"\0".join((key.encode(), path.encode(), body))).digest()
        before = self._ids.setdefault(request, told)
        if before != told:
            self.twice.append(f"{path}: {before}, then {told}")

    def _read(self, future: str, answer: httpx.Response) -> None:
        told = self.told.get(future)
        if told is None or not is_final(answer):
            return
        if told.outcome is None:
            told.outcome = answer.content
            self.finals += 1
        elif told.outcome != answer.content:
            told.changed = True


def is_final(answer: httpx.Response) -> bool:
    """Whether a poll's answer is the result, and not that there is none yet."""
    if answer.status_code != 200:
        return False
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return True
    fields = answer.json()
    return not (isinstance(fields, dict) and fields.get("type") == "try_again")


class Recording(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: Callable[[], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.http = httpx.Client(timeout=90, limits=httpx.Limits(max_connections=256))
        self.record = Record()
        self.ended = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def send_on(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """Raises httpx.TransportError: nobody is there, or it broke off."""
        until = time.monotonic() + _TAKES_S
        while not self.ended:
            try:
                return self.http.request(method, self.upstream() + path, content=body, headers=headers)
            except httpx.ConnectError:
                if time.monotonic() > until:
                    raise
                threading.Event().wait(_LOOK_AGAIN_S)
        raise httpx.ConnectError("the test is over")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recording
    # Headers and body leave in two writes: without this, each answer waits for the client's delayed ACK.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self._relay()

    do_GET = do_PUT = do_DELETE = do_POST

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_RELAYED}
        try:
            answer = self.server.send_on(self.command, self.path, body, headers)
        except httpx.TransportError:
            self.close_connection = True
            return
        self.server.record.heard(self.headers.get("X-API-Key", ""), self.command, self.path, body, answer)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in _NOT_RELAYED:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has left
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def recording(upstream: Callable[[], str]) -> Iterator[Recording]:
    proxy = Recording(upstream)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        # Clients of the SDK have a heart that beats on.
        proxy.ended = True
        proxy.shutdown()
        thread.join()
        proxy.server_close()
