"""HTTP connections, within bounds: how long and how large the first lines of a request may be, and how long
somebody may leave an answer unread.

The server itself waits for ever for a request that never gets past its headers, and keeps all that comes.
How many connections there may be is its own setting.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .pace import FREE
from .two_lines import TwoLines

_WITHIN_S = 30.0
_HEADERS_BYTES = 64 * 2**10
# Who reads an answer reads so much of it in that time, or is gone: it is held until then. The system tells of
# what was read by the megabyte.
_READ_WITHIN_S = 120.0
_READ_BYTES = 64 * 2**10


class Connection(HttpToolsProtocol):
    """A timer runs from the beginning of a request until its headers are whole, and while the rest of a body
    comes that was refused already. A body that is being read is its reader's to wait for.

    lines: who sent a heartbeat last is expected to send the next one, and passes all others. Not who sent nothing
    yet: thousands may come in one instant."""

    def __init__(self, *arguments: Any, lines: TwoLines, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._lines = lines
        self._descriptor = -1
        self._due: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_body = False
        self._headers_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._lines.put_off(self._descriptor)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        # Its number will be another's.
        self._lines.let_pass(self._descriptor)
        self._came()
        self._was_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        self._was_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._headers_bytes += len(data)
        if not self._in_body or self.cycle.response_complete:
            self._expect()
        super().data_received(data)
        if self._headers_bytes > _HEADERS_BYTES:
            self._hang_up()

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._came()
        super().on_headers_complete()
        if self.scope["path"] in FREE:
            self._lines.let_pass(self._descriptor)
        else:
            self._lines.put_off(self._descriptor)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._came()
        super().on_message_complete()

    def _expect(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(_WITHIN_S, self._hang_up)

    def _came(self) -> None:
        self._headers_bytes = 0
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _watch_reading(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(_READ_WITHIN_S, self._look_at_reading, left)

    def _look_at_reading(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < _READ_BYTES:
            self._hang_up()
        else:
            self._watch_reading()

    def _was_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _hang_up(self) -> None:
        self._came()
        self._was_read()
        self.transport.abort()
