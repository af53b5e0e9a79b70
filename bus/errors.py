"""Every error that loractl raises on purpose, with a code that never changes.

An actor's loop catches `LoractlError` alone and answers with it; anything else is a bug: it is
logged, the client reads `internal`, and the supervisor starts the actor again.

`retryable` says that the same request may succeed later without being changed. `fault` says whose
doing it was: the caller's ("user") or ours ("server").
"""

import re
from typing import ClassVar, Literal

Fault = Literal["user", "server"]


class LoractlError(Exception):
    """Base of the tree. The message is one line and says what to do."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    fault: ClassVar[Fault] = "user"

    @property
    def message(self) -> str:
        """What it quotes may be anybody's: this can be sent as UTF-8 and shown on a terminal."""
        return _tellable(str(self.args[0])) if self.args else self.code


_LONGEST = 8000
# Half surrogate pairs, which no UTF-8 has, and control characters but for tabs and ends of lines.
_NOT_TOLD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def _tellable(text: str) -> str:
    if not text.isprintable():
        text = _NOT_TOLD.sub(lambda found: ascii(found[0])[1:-1], text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


# --- the caller's doing -------------------------------------------------------------------------


class InvalidRequest(LoractlError):
    """A field is missing, of the wrong type or out of range."""

    code = "invalid_request"


class InvalidName(InvalidRequest):
    code = "invalid_name"


class SequenceOutOfRange(InvalidRequest):
    """A sequence number below 1, or too far ahead of its lane. It is not used up."""

    code = "sequence_out_of_range"


class InvalidData(InvalidRequest):
    """Training or sampling data that cannot be used: empty, too long, out of vocabulary, NaN."""

    code = "invalid_data"


class InvalidConfig(LoractlError):
    code = "invalid_config"


class NotSupported(LoractlError):
    """Understood, but not something this server does. Names what was asked for."""

    code = "not_supported"


class AdapterNotFound(LoractlError):
    code = "adapter_not_found"


class AdapterExists(LoractlError):
    code = "adapter_exists"


class CheckpointNotFound(LoractlError):
    code = "checkpoint_not_found"


class CheckpointExists(LoractlError):
    code = "checkpoint_exists"


class CheckpointMismatch(LoractlError):
    """A checkpoint or PEFT directory whose tensors, rank, alpha, targets or base do not fit."""

    code = "checkpoint_mismatch"


class VersionNotFound(LoractlError):
    code = "version_not_found"


class SessionNotFound(LoractlError):
    code = "session_not_found"


class SessionEnded(LoractlError):
    """The session was finished by its client, or nothing was heard of it for too long."""

    code = "session_ended"


class ResultNotFound(LoractlError):
    code = "result_not_found"


class ResultExpired(LoractlError):
    """The result was there, and is no longer kept."""

    code = "result_expired"


class AccessDenied(LoractlError):
    """No API key, one that is not known here, or something that only the daemon's owner may do."""

    code = "access_denied"


class SequenceConflict(LoractlError):
    """A sequence number was used twice in one lane, with different content."""

    code = "sequence_conflict"


class RequestConflict(LoractlError):
    """A request id was used twice with different content."""

    code = "request_conflict"


class SequenceGap(LoractlError):
    """An earlier operation of this lane never arrived."""

    code = "sequence_gap"


class QuotaExceeded(LoractlError):
    """The tenant has as much as one may at a time; the message holds the numbers. Later there is room."""

    code = "quota_exceeded"
    retryable = True


class DiskQuotaExceeded(LoractlError):
    """What is kept on disk for the tenant would be more than it may be; the message holds the numbers. There is
    room once the tenant has deleted some of it."""

    code = "disk_quota_exceeded"


class OutOfSlots(LoractlError):
    """No device or host row is left for another adapter; the message holds the numbers."""

    code = "out_of_slots"


class WindowOpen(LoractlError):
    """An adapter's step window is open, and what was asked for would change what it gathered."""

    code = "window_open"


class NotFinite(LoractlError):
    """The operation produced NaN or infinity; the adapter is as it was before it."""

    code = "not_finite"


class Aborted(LoractlError):
    """The request was cancelled by its owner, or its adapter was deleted."""

    code = "aborted"


# --- ours, and worth another try ----------------------------------------------------------------


class LaneLost(LoractlError):
    """The trainer let go of the adapter, or was started again without a journal: open a new lane."""

    code = "lane_lost"
    retryable = True
    fault = "server"


class ActorRestarting(LoractlError):
    """The actor died or is not ready yet; the request left no trace."""

    code = "actor_restarting"
    retryable = True
    fault = "server"


class ActorStopping(LoractlError):
    code = "actor_stopping"
    retryable = True
    fault = "server"


class ActorUnavailable(LoractlError):
    """No actor of that kind is configured, or it failed too often and was given up."""

    code = "actor_unavailable"
    fault = "server"


class EngineFailed(LoractlError):
    """The sampling engine died and is being rebuilt."""

    code = "engine_failed"
    retryable = True
    fault = "server"


class PublishFailed(LoractlError):
    """The version was written, but no sampler could serve it."""

    code = "publish_failed"
    fault = "server"


class StorageFailed(LoractlError):
    """The state directory cannot be written, such as for want of space. Nothing was changed."""

    code = "storage_failed"
    fault = "server"


class AnotherBase(LoractlError):
    """The adapter lies on disk and belongs to another base model than the one that runs, or cannot be read."""

    code = "another_base"
    fault = "server"


class Quarantined(LoractlError):
    """A process died again and again while it had this operation in hand; it is not tried any more."""

    code = "quarantined"


class RecoveryFailed(LoractlError):
    """After a restart the adapter could not be brought back to where it was. Its checkpoints are there."""

    code = "recovery_failed"
    fault = "server"


class Internal(LoractlError):
    """Our bug. The log has the details."""

    code = "internal"
    fault = "server"


# --- between processes --------------------------------------------------------------------------


class BadFrame(LoractlError):
    """Bytes that are not a message of this protocol."""

    code = "bad_frame"


class DaemonNotRunning(LoractlError):
    code = "daemon_not_running"


class DaemonGone(LoractlError):
    """The daemon stopped answering while a request was under way."""

    code = "daemon_gone"
    retryable = True
    fault = "server"


class DaemonAlreadyRunning(LoractlError):
    code = "daemon_already_running"


class StartFailed(LoractlError):
    """The daemon or one of its actors did not become ready."""

    code = "start_failed"
    fault = "server"


def _all_subclasses(cls: type[LoractlError]) -> list[type[LoractlError]]:
    return [cls, *(s for child in cls.__subclasses__() for s in _all_subclasses(child))]


_BY_CODE = {cls.code: cls for cls in _all_subclasses(LoractlError)}


def error_from_code(code: str, message: str) -> LoractlError:
    """Rebuild an error that crossed a process boundary. An unknown code becomes `Internal`."""
    return _BY_CODE.get(code, Internal)(message)
