"""Bodies as they come: plain or zstd-compressed, in plain bytes no larger than a limit."""

import zstandard

from ...bus.errors import InvalidRequest, NotSupported

# Twenty times what the SDK puts into a request.
MOST_BYTES = 128 * 2**20
# JSON takes ten times its size when it is read, and the interpreter for as long as that takes.
MOST_JSON_BYTES = 64 * 2**20

# The most that this many bytes can grow to is bounded (blocks of 128 KiB from a few bytes each).
_STEP_BYTES = 1024
_LARGEST_WINDOW_BYTES = 2**27


def plain_body(body: bytes, content_encoding: str | None, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Undo the Content-Encoding of a request.

    Raises:
        InvalidRequest: the body is damaged, or too large in plain.
        NotSupported: it is encoded in another way.
    """
    encoding = (content_encoding or "identity").strip().lower()
    if encoding == "zstd":
        return _decompressed(body, most_bytes)
    if encoding != "identity":
        raise NotSupported(f"Content-Encoding {encoding[:40]!r} is not supported: send zstd, or none")
    if len(body) > most_bytes:
        raise InvalidRequest(_too_large(most_bytes))
    return body


def _decompressed(body: bytes, most_bytes: int) -> bytes:
    # In steps, for the size that a header claims may be any, and so may be what a few bytes grow to.
    decoder = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW_BYTES).decompressobj()
    parts: list[bytes] = []
    size = 0
    try:
        for start in range(0, len(body), _STEP_BYTES):
            parts.append(decoder.decompress(body[start : start + _STEP_BYTES]))
            size += len(parts[-1])
            if size > most_bytes:
                raise InvalidRequest(_too_large(most_bytes))
    except zstandard.ZstdError as error:
        raise InvalidRequest(f"the body is not zstd data: {error}") from error
    if not decoder.eof or decoder.unused_data:
        raise InvalidRequest("the body is not one whole zstd frame")
    return b"".join(parts)


def _too_large(most_bytes: int) -> str:
    return f"the body is larger than {most_bytes} bytes: send fewer datums at a time"
