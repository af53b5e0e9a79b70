"""A proxy that loses replies: each request reaches the service, and its first answer reaches nobody."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

# Answers that come again and again anyway.
_NEVER_LOST = ("/client/", "/session_heartbeat", "/telemetry")
# The SDK takes another one whenever it sends the same save again.
_CHANGING = re.compile(rb'"sampling_session_seq_id":\s*\d+')
_NOT_RELAYED = {"connection", "content-length", "transfer-encoding", "host", "content-encoding"}


class Dropping(ThreadingHTTPServer):
    """lost: paths of the requests whose first answer was lost."""

    daemon_threads = True
    # Bursts of connections are the clients' way.
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = httpx.Client(base_url=upstream, timeout=60)
        self.lost: list[str] = []
        self._seen: set[tuple[str, bytes]] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def loses(self, path: str, body: bytes, answer: bytes) -> bool:
        """Whether this answer is to be lost: a first one, and one that ends a wait."""
        if any(each in path for each in _NEVER_LOST) or b'"try_again"' in answer:
            return False
        request = (path, _CHANGING.sub(b"", body))
        with self._lock:
            known = request in self._seen
            self._seen.add(request)
            if not known:
                self.lost.append(path.removeprefix("/api/v1/"))
            return not known


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Dropping
    # Headers and body leave in two writes: without this, each answer waits for the client's delayed ACK.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self._relay()

    def do_GET(self) -> None:
        self._relay()

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_RELAYED}
        answer = self.server.upstream.request(self.command, self.path, content=body, headers=headers)
        if self.server.loses(self.path, body, answer.content):
            self.close_connection = True
            return
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in _NOT_RELAYED:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def dropping(upstream: str) -> Iterator[Dropping]:
    proxy = Dropping(upstream)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
        proxy.upstream.close()
